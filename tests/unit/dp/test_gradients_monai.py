"""Networks of MONAI: rows equal plain autograd on single examples, whichever method the choice takes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from medveil.dp.checks import check
from medveil.dp.engine import Shapes, layerwise_refusal
from medveil.dp.gradients import per_unit_gradients
from medveil.errors import UnsupportedModelError
from medveil.models.monai_nets import MonaiConfig
from medveil.models.registry import build

_INSTANCE = ("INSTANCE", {"affine": True})
_DYNUNET = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 6, 8]}
_VIT = {"patch_size": 8, "hidden_size": 12, "mlp_dim": 12, "num_layers": 1, "num_heads": 2, "classification": True}
_UNETR = {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2, "norm_name": "instance"}
_UNET = {"channels": [4, 8], "strides": [2], "num_res_units": 1}

# Name, arguments, images, and whether every layer has a rule.
NETWORKS = {
    "SegResNet": ({"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}, (1, 8, 8, 8), True),
    "DynUNet": (_DYNUNET | {"norm_name": _INSTANCE}, (1, 16, 16), True),
    "BasicUNet": ({"features": (4, 4, 4, 4, 4, 4), "norm": _INSTANCE}, (1, 32, 32), True),
    "UNet": (_UNET | {"norm": _INSTANCE, "dropout": 0.0}, (1, 16, 16), True),
    "DenseNet": (
        {"init_features": 4, "growth_rate": 2, "block_config": [2], "bn_size": 1, "norm": _INSTANCE},
        (1, 32, 32),
        True,
    ),
    "ViT": (_VIT | {"post_activation": "none"}, (1, 16, 16), False),
    "UNETR": (_UNETR, (1, 32, 32), False),
}


def _network(name):
    arguments, shape, _ = NETWORKS[name]
    if name in {"ViT", "UNETR"}:
        pytest.importorskip("einops", reason="MONAI's transformers need einops")
    config = MonaiConfig(name=name, arguments=arguments)
    if name == "ViT":  # answers with the hidden states as well
        return _FirstAnswer(build_vit(arguments, shape)), shape
    return build(config, input_shape=shape, num_classes=2, seed=0), shape


class _FirstAnswer(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)[0]


def build_vit(arguments, shape):
    from monai.networks.nets import ViT

    torch.manual_seed(0)
    return ViT(in_channels=1, img_size=shape[1:], spatial_dims=2, num_classes=2, **arguments)


def _expected(model, images, targets):
    rows = []
    for image, target in zip(images, targets, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), target[None]).backward()
        parameters = [tensor for tensor in model.parameters() if tensor.requires_grad]
        rows.append(
            torch.cat([(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters])
        )
    return torch.stack(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_equal_autograd_on_single_examples(name):
    model, shape = _network(name)
    model = model.double()
    check(model, input_shape=shape)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        positions = model(images[:1]).shape[2:]
    targets = torch.randint(0, 2, (3, *positions), generator=generator)
    expected = _expected(model, images, targets)
    by_rule = not layerwise_refusal(model, cross_entropy, Shapes(shape, tuple(positions)))
    assert by_rule == NETWORKS[name][2]
    for method in ("layerwise", "vmap") if by_rule else ("vmap",):
        rows = per_unit_gradients(model, cross_entropy, (images, targets), torch.arange(3), method=method)
        assert float(((rows - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-8


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("BasicUNet", {"features": (4, 4, 4, 4, 4, 4), "norm": "batch"}), ("UNet", _UNET | {"norm": "BATCH"})],
)
def test_their_batch_normalisation_is_refused(name, arguments):
    model = build(MonaiConfig(name=name, arguments=arguments), input_shape=(1, 32, 32), num_classes=2, seed=0)
    with pytest.raises(UnsupportedModelError, match="Batch normalisation") as caught:
        check(model)
    assert 'norm = "group"' in str(caught.value)
