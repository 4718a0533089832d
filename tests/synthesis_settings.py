"""Settings of a small and quick synthesis, for the tests of it."""

from sard_lora.synthesize_config import SynthesizeConfig


def settings(adapter, mvtec, output, **changes) -> SynthesizeConfig:
    values = {"count": 5, "candidates": 2, "batch_size": 4, "num_inference_steps": 2}
    values |= {"min_visibility": 0.0, "in_place": 0.0, "drawn": 0.0}
    return SynthesizeConfig(adapter=adapter.folder, data=mvtec, output=output, **(values | changes))
