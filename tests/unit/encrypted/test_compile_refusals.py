"""What cannot be compiled is refused by name, with a remedy; and which nets of MONAI compile."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from medveil.encrypted.compiler.main import compile as compile_network
from medveil.errors import ConfigError, ModelError, UnsupportedLayer, WeightsError
from medveil.models.layers import fold
from medveil.models.monai_nets import MonaiConfig
from medveil.models.registry import build
from medveil.models.resnet import Resnet20Config


def _compile(module, shape=(1, 8, 8), task="segmentation", **options):
    return compile_network(module, shape, (0.0, 1.0), task=task, **options)


def _around(layer, channels=4):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(nn.Identity(), layer), nn.Conv2d(channels, 2, 1))


@pytest.mark.parametrize(
    ("layer", "remedy"),
    [
        (nn.GroupNorm(2, 4), 'norm = "ws"'),
        (nn.InstanceNorm2d(4), 'norm = "ws"'),
        (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats"),
        (nn.LeakyReLU(), "use ReLU"),
        (nn.ELU(), "use ReLU"),
        (nn.SiLU(), "use ReLU"),
        (nn.PReLU(), "use ReLU"),
        (nn.GELU(), "use ReLU"),
        (nn.ReLU6(), "use ReLU"),
        (nn.Sigmoid(), "leave it off"),
        (nn.Softmax(1), "leave it off"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "nearest"),
        (nn.Upsample(size=(11, 11)), "nearest"),
        (nn.MaxPool2d(3, ceil_mode=True), "leave both off"),
        (nn.MaxPool2d(2, dilation=2), "dilation = 1"),
        (nn.AvgPool2d(3, padding=1), "leave both off"),
        (nn.AvgPool2d(2, divisor_override=3), "leave it off"),
        (nn.AdaptiveAvgPool2d(3), "size that divides"),
        (nn.AdaptiveMaxPool2d(1), "fixed window"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "zeros"),
        (nn.Conv2d(4, 4, 2, padding="same"), "odd kernels"),
        (nn.ZeroPad2d(1), "pad with zeros inside"),
        (nn.Linear(8, 4), "flatten before"),
        (nn.PixelShuffle(2), "nearest"),
        (nn.Bilinear(8, 8, 4), "by a sum"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_a_layer_that_is_not_covered_is_refused_by_name_with_a_remedy(layer, remedy):
    with pytest.raises(UnsupportedLayer) as caught:
        _compile(_around(layer))
    assert caught.value.layer == f"1.1 ({type(layer).__name__})"
    assert remedy in caught.value.remedy
    assert caught.value.layer in str(caught.value)
    assert caught.value.exit_code == 4


class _Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        return self.head(self.function(self.conv(images)))


@pytest.mark.parametrize(
    ("function", "name", "remedy"),
    [
        (torch.sigmoid, "sigmoid", "leave it off"),
        (lambda x: x.softmax(1), "softmax", "leave it off"),
        (functional.leaky_relu, "leaky_relu", "use ReLU"),
        (lambda x: functional.group_norm(x, 2), "group_norm", 'norm = "ws"'),
        (functional.dropout, "dropout", "self.training"),
        (lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"), "interpolate", "nearest"),
        (lambda x: functional.pad(x, (1, 1)), "pad", "pad with zeros"),
        (lambda x: x * x, "mul", "by numbers only"),
        (lambda x: 1 / x, "truediv", "by numbers only"),
        (lambda x: x + 1.0, "add", "bias"),
        (lambda x: x - x, "sub", "sum"),
        (lambda x: torch.cat([x, x], dim=2), "cat", "dim = 1"),
        (lambda x: x + x.mean((2, 3), keepdim=True), "add", "equal shape"),
        (lambda x: torch.add(x, x, alpha=2), "add", "multiply"),
        (lambda x: x.transpose(2, 3), "transpose", "order"),
        (lambda x: x[:, :2], "getitem", "order"),
        (lambda x: x.mean(1, keepdim=True), "mean", "spatial"),
        (lambda x: functional.conv2d(x, torch.ones(4, 4, 1, 1)), "conv2d", "replace it"),
        (lambda x: functional.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d", "without indices"),
        (lambda x: x.reshape(-1, 8, 8)[None], "reshape", "batch"),
    ],
)
def test_a_function_that_is_not_covered_is_refused_where_it_is_called(function, name, remedy):
    with pytest.raises(UnsupportedLayer) as caught:
        _compile(_Net(function))
    assert name in caught.value.layer
    assert remedy in caught.value.remedy


def test_code_that_cannot_be_traced_or_that_answers_otherwise_is_refused():
    with pytest.raises(ModelError, match="cannot be traced"):
        _compile(_Net(lambda x: x if x.sum() > 0 else -x))
    with pytest.raises(ModelError, match="cannot read these images"):
        _compile(nn.Conv2d(3, 2, 1))
    with pytest.raises(ModelError, match="does not fit the task"):
        _compile(nn.Conv2d(1, 2, 1), task="classification")
    with pytest.raises(ModelError, match="other than one tensor"):
        _compile(_Pair())
    hooked = nn.Sequential(nn.Conv2d(1, 2, 1))
    hooked[0].register_forward_hook(lambda module, given, answer: answer + 1)
    with pytest.raises(ModelError, match="Hooks"):
        _compile(hooked)


class _Pair(nn.Module):
    def forward(self, images):
        return images, images


def test_a_forward_pass_that_differs_from_its_trace_is_noticed():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.times = nn.Conv2d(1, 2, 1), 0

        def forward(self, images):
            self.times += 1
            return self.conv(images) * self.times

    with pytest.raises(ModelError, match="something other than its traced layers"):
        _compile(Stateful())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_range": (1.0, 0.0)}, "range"),
        ({"input_range": (0.0, float("inf"))}, "range"),
        ({"activation_limit": 0.0}, "limit"),
        ({"names": ("a",)}, "names"),
        ({"input_shape": (1, 0, 8)}, "empty"),
    ],
)
def test_arguments_without_sense_are_refused(options, said):
    arguments = {"input_shape": (1, 8, 8), "input_range": (0.0, 1.0), "task": "segmentation", **options}
    with pytest.raises(ConfigError, match=said):
        compile_network(nn.Conv2d(1, 2, 1), **arguments)


def test_weights_that_are_not_finite_are_refused():
    model = nn.Conv2d(1, 2, 1)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(WeightsError, match="finite"):
        _compile(model)


def test_a_layer_whose_values_do_not_fit_is_refused_with_numbers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    nn.init.constant_(model[0].weight, 1.0)
    nn.init.constant_(model[2].weight, 1e6)
    with pytest.raises(UnsupportedLayer, match=r"activation_limit \(now 8\)") as caught:
        _compile(model)
    assert caught.value.layer == "2 (Conv2d)"
    assert float(str(caught.value.got).split()[3].rstrip(",")) > float(str(caught.value.expected).split()[-1])


def _unet(**arguments):
    plain = {"channels": [4, 8, 16], "strides": [2, 2], "act": "RELU", "norm": "BATCH"}
    return "UNet", plain | arguments, (1, 16, 16), "segmentation"


_MONAI = [
    (*_unet(), None),
    (*_unet(num_res_units=2), None),
    ("UNet", {"channels": [4, 8], "strides": [2], "act": "RELU", "norm": "BATCH"}, (2, 8, 8, 8), "segmentation", None),
    # Default activation PReLU, default normalisation by image.
    (*_unet(act="PRELU"), "PReLU"),
    (*_unet(norm="INSTANCE"), "InstanceNorm2d"),
    (
        "ResNet",
        {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 8, 8, 8], "n_input_channels": 1},
        (1, 32, 32),
        "classification",
        None,
    ),
    (
        "DenseNet121",
        {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]},
        (1, 32, 32),
        "classification",
        None,
    ),
    ("SegResNet", {"init_filters": 8}, (1, 16, 16), "segmentation", "GroupNorm"),
    ("EfficientNetBN", {"model_name": "efficientnet-b0"}, (3, 64, 64), "classification", "ConstantPad2d"),
    ("AttentionUnet", {"channels": [4, 8], "strides": [2]}, (1, 16, 16), "segmentation", "Sigmoid"),
]


@pytest.mark.parametrize(("name", "arguments", "shape", "task", "refused"), _MONAI)
def test_which_nets_of_monai_compile(name, arguments, shape, task, refused):
    model = build(MonaiConfig(name=name, arguments=arguments), input_shape=shape, num_classes=2, seed=0, task=task)
    if refused is None:
        compiled = compile_network(model, shape, (0.0, 1.0), task=task)
        assert compiled.program.output.shape == (2, *(shape[1:] if task == "segmentation" else ()))
        return
    with pytest.raises(UnsupportedLayer) as caught:
        compile_network(model, shape, (0.0, 1.0), task=task)
    assert f"({refused})" in caught.value.layer
    assert caught.value.remedy


@pytest.mark.parametrize("activation", ["silu", "elu"])
def test_other_activations_of_the_zoo_are_refused(activation):
    model = build(Resnet20Config(width=4, activation=activation), input_shape=(1, 16, 16), num_classes=2, seed=0)
    with pytest.raises(UnsupportedLayer, match="use ReLU"):
        _compile(model, (1, 16, 16), "classification")
    with pytest.raises(UnsupportedLayer, match="use ReLU"):
        _compile(fold(model), (1, 16, 16), "classification")
