"""How good a model is, with patient-level intervals: classification and segmentation."""
