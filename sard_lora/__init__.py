"""sard-lora: a few defect images in, thousands of labelled ones and a better segmenter out.

Importing this package is cheap: torch and the rest load with the first name that needs them.
"""

import importlib
from typing import Any

_HOMES = {
    "Adapter": "sard_lora.adapter",
    "AdapterTrainConfig": "sard_lora.train.joint",
    "EvaluateConfig": "sard_lora.evaluation.protocol",
    "SardInpaintPipeline": "sard_lora.pipelines.sard_inpaint",
    "SynthesizeConfig": "sard_lora.synthesize_config",
    "evaluate": "sard_lora.evaluation.protocol",
    "few_shot_split": "sard_lora.data",
    "load_image": "sard_lora.images",
    "load_mask": "sard_lora.images",
    "open_category": "sard_lora.data",
    "synthesize": "sard_lora.synthesis",
    "train_adapter": "sard_lora.train.adapter",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sard_lora' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
