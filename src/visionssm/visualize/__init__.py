"""Pictures of what a backbone looks at: receptive fields, the implicit attention of its scans, Grad-CAM, its walks."""

from .attention import (
    MODES,
    attention_matrices,
    attention_row,
    direction_activations,
    normalise,
    roll_out,
)
from .grad_cam import cam_layers, grad_cam
from .receptive_field import ReceptiveField, area_ratio, effective_receptive_field
from .records import ScanRecord, middle_record, record_scans

__all__ = [
    "MODES",
    "ReceptiveField",
    "ScanRecord",
    "area_ratio",
    "attention_matrices",
    "attention_row",
    "cam_layers",
    "direction_activations",
    "effective_receptive_field",
    "grad_cam",
    "middle_record",
    "normalise",
    "record_scans",
    "roll_out",
]
