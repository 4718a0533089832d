"""SardInpaintPipeline: what it promises about pixels, inputs, schedulers, and its place in diffusers."""

import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, StableDiffusionInpaintPipeline
from PIL import Image
from tiny_base import write_tiny_base

from sard_lora.adapter_config import LORA_FILE
from sard_lora.pipelines import sard_inpaint
from sard_lora.pipelines.sard_inpaint import SardInpaintPipeline, defect_gate, resize, window_box


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "nine")


@pytest.fixture
def pipe(base):
    pipe = SardInpaintPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def scratch(width, height, row, columns=(10, 30)):
    mask = np.zeros((height, width), bool)
    mask[row, columns[0] : columns[1]] = True
    return Image.fromarray(mask)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def changed(result, image):
    return (np.asarray(result) != np.asarray(image)).any(-1)


@pytest.mark.parametrize("composite", ["change", "contrast", "defect", "pixels"])
@pytest.mark.parametrize("region", ["window", "full"])
@pytest.mark.parametrize("background", ["frozen", "renoised", "off"])
def test_background_is_bit_exact(pipe, background, region, composite):
    image, mask = picture(90, 61), scratch(90, 61, 20)
    result = pipe(
        "a crack",
        image=image,
        mask_image=mask,
        negative_prompt="good",
        background=background,
        region=region,
        composite=composite,
        guidance_scale=3000.0,  # random weights: with less, the words make no difference
        num_inference_steps=2,
        generator=seeded(),
    )
    difference = changed(result.images[0], image)
    assert not difference[~np.asarray(mask)].any()
    assert difference[np.asarray(mask)].any()


@pytest.mark.parametrize("side", [24, 60])
def test_decoded_pixels_are_written_with_no_grain_of_the_part(pipe, side):
    """Windows smaller and larger than the generation: nothing is left of the part, nor of what was changed."""
    mask = torch.zeros(1, 61, 90)
    mask[:, 20:32, 40:52] = 1
    result = pipe(
        "a crack",
        image=picture(90, 61),
        mask_image=mask,
        init_image=picture(90, 61, 1),
        strength=0.5,
        composite="pixels",
        context=1.0,
        min_side=side,
        feather_width=1,
        num_inference_steps=2,
        generator=seeded(),
    )
    with torch.no_grad():
        decoded = pipe.decode_latents_to_images(result.latents)[0]
    box = window_box(mask, 1.0, side)
    assert box.width == side != decoded.shape[-1]
    expected = resize(decoded, (side, side)).add(1).mul(127.5).round().clamp(0, 255).permute(1, 2, 0).numpy()
    expected = expected[20 - box.top : 32 - box.top, 40 - box.left : 52 - box.left]
    assert np.array_equal(np.asarray(result.images[0])[20:32, 40:52], expected)


def watch(pipe, background, **options):
    """All intermediate latents of a run, with the image latents and the mask."""
    seen = []

    def remember(pipeline, step, timestep, tensors):
        seen.append({name: tensor.clone() for name, tensor in tensors.items()})
        return {}

    pipe(
        "a crack",
        image=picture(90, 61),
        mask_image=scratch(90, 61, 20),
        background=background,
        num_inference_steps=4,
        generator=seeded(),
        output_type="latent",
        callback_on_step_end=remember,
        callback_on_step_end_tensor_inputs=["latents", "image_latents", "mask"],
        **options,
    )
    return seen


def test_frozen_background_latents_are_equal_to_the_bit_at_every_step(pipe):
    seen = watch(pipe, "frozen")
    assert len(seen) == 4
    for step in seen:
        outside = step["mask"].expand_as(step["latents"]) < 0.5
        assert step["latents"][outside].equal(step["image_latents"][outside])


def test_renoised_background_ends_clean_and_off_does_not(pipe):
    for background, clean in (("renoised", True), ("off", False)):
        seen = watch(pipe, background)
        outside = seen[-1]["mask"].expand_as(seen[-1]["latents"]) < 0.5
        same = [step["latents"][outside].equal(step["image_latents"][outside]) for step in seen]
        assert same == [False, False, False, clean]


@pytest.mark.parametrize(
    "scheduler",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "KDPM2DiscreteScheduler",
        "LMSDiscreteScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    ],
)
@pytest.mark.parametrize("background", ["frozen", "renoised"])
def test_any_scheduler(pipe, scheduler, background):
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    for step in watch(pipe, background)[-1:]:
        assert step["latents"].isfinite().all()
        outside = step["mask"].expand_as(step["latents"]) < 0.5
        assert step["latents"][outside].equal(step["image_latents"][outside])


@pytest.mark.parametrize("strength", [0.3, 0.95, 1.0])
def test_plms_takes_its_first_step_twice_wherever_it_begins(pipe, monkeypatch, strength):
    """With a UNet that knows z_0 = 0 it ends where DDIM does, and not a step before."""

    def all_is_noise(model_input, t, *_):
        return model_input[:, :4] / (1 - pipe.scheduler.alphas_cumprod[t]).sqrt()

    monkeypatch.setattr(pipe, "_guided_prediction", all_is_noise)
    settings = dict(image=picture(64, 64), mask_image=Image.new("1", (64, 64), 1), num_inference_steps=20)
    found = []
    for scheduler in (diffusers.DDIMScheduler, diffusers.PNDMScheduler):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
        result = pipe("a crack", strength=strength, generator=seeded(), output_type="latent", **settings)
        found.append(result.images)
    assert (found[0] - found[1]).abs().mean() < 0.1 * found[0].abs().mean()


@pytest.mark.parametrize(("channels", "prediction_type"), [(4, "epsilon"), (9, "v_prediction")])
def test_other_bases(tmp_path, channels, prediction_type):
    pipe = SardInpaintPipeline.from_pretrained(write_tiny_base(tmp_path, channels, prediction_type))
    image, mask = picture(64, 64), scratch(64, 64, 20)
    result = pipe("a crack", image=image, mask_image=mask, num_inference_steps=2, generator=seeded()).images[0]
    assert not changed(result, image)[~np.asarray(mask)].any()


def test_half_precision_text_encoder_beside_a_full_precision_unet(pipe):
    pipe.text_encoder.half()
    image, mask = picture(80, 72), scratch(80, 72, 30)
    output = pipe("a nut", image=image, mask_image=mask, negative_prompt="good", num_inference_steps=2)
    assert output.latents.dtype == torch.float32 and output.latents.isfinite().all()


def test_every_image_has_its_own_mask_prompt_size_and_generator(pipe):
    images = [picture(90, 61, 1), picture(40, 120, 2)]
    masks = [scratch(90, 61, 20), scratch(40, 120, 100)]
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "negative_prompt": "good"}
    together = pipe(
        ["a crack", "a hole"], image=images, mask_image=masks, generator=[seeded(1), seeded(2)], **options
    ).images
    for index, prompt in enumerate(["a crack", "a hole"]):
        alone = pipe(
            prompt, image=images[index], mask_image=masks[index], generator=seeded(index + 1), **options
        ).images[0]
        assert alone.size == images[index].size
        distance = np.abs(np.asarray(alone, int) - np.asarray(together[index], int)).max()
        assert distance <= 1, "batching moves a pixel by rounding at most"


def test_output_types(pipe):
    image, mask = picture(64, 64), scratch(64, 64, 20)
    results = {
        kind: pipe("a crack", image=image, mask_image=mask, num_inference_steps=2, generator=seeded(), output_type=kind)
        for kind in ("pil", "pt", "latent")
    }
    as_tensor = torch.from_numpy(np.array(results["pil"].images[0])).permute(2, 0, 1).float() / 255
    assert results["pt"].images.equal(as_tensor[None])
    assert results["latent"].images.equal(results["pil"].latents)
    assert results["latent"].images.shape == (1, 4, 8, 8)
    from_tensors = pipe(
        "a crack",
        image=torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255,
        mask_image=torch.from_numpy(np.array(mask))[None, None].float(),
        num_inference_steps=2,
        generator=seeded(),
    )
    assert not changed(from_tensors.images[0], results["pil"].images[0]).any()


def test_guidance_moves_away_from_the_negative_prompt(pipe):
    image, mask = picture(64, 64), scratch(64, 64, 20)
    options = {"image": image, "mask_image": mask, "num_inference_steps": 2, "output_type": "latent"}
    defect = pipe("crack", guidance_scale=1.0, generator=seeded(), **options).images
    same = pipe("crack", negative_prompt="crack", guidance_scale=5.0, generator=seeded(), **options).images
    away = pipe("crack", negative_prompt="good", guidance_scale=5.0, generator=seeded(), **options).images
    assert torch.allclose(defect, same, atol=1e-5)
    assert not torch.allclose(defect, away, atol=1e-3)


def test_grey_and_one_valued_masks_are_understood(pipe):
    image, mask = picture(64, 64), scratch(64, 64, 20)
    ones = Image.fromarray(np.asarray(mask).astype(np.uint8))
    options = {"image": image, "num_inference_steps": 1}
    expected = pipe("a crack", mask_image=mask, generator=seeded(), **options).images[0]
    for same in (ones, mask.convert("L"), mask.convert("RGB")):
        assert not changed(pipe("a crack", mask_image=same, generator=seeded(), **options).images[0], expected).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_image": None}, "mask_image is missing"),
        ({"image": None}, "image is missing"),
        ({"mask_image": Image.new("L", (64, 64))}, "mask 0 is empty"),
        ({"mask_image": Image.new("L", (64, 64), 90)}, "brightest value is 90"),
        ({"mask_image": Image.new("L", (64, 32), 255)}, "64 × 32 pixels, its image 64 × 64"),
        ({"image": Image.new("I;16", (64, 64))}, "8 bits"),
        ({"image": [picture(64, 64)] * 3, "mask_image": [scratch(64, 64, 5)] * 2}, "3 images and 2 masks"),
        ({"prompt": ["a crack", "a hole"]}, "2 prompts for 1 images"),
        ({"background": "clean"}, "'clean' is not one of renoised, frozen, off"),
        ({"composite": "paste"}, "is not one of change, contrast, defect, pixels"),
        ({"region": "crop"}, "is not one of window, full"),
        ({"output_type": "np"}, "is not one of pil, pt, latent"),
        ({"generator": [seeded(), seeded()]}, "2 generators for 1 images"),
        ({"strength": 0.01}, "no step to take"),
        ({"strength": 0.5, "init_image": picture(64, 32)}, "init_image: give one for each image, and of its size"),
        ({"strength": 0.5, "init_image": [picture(64, 64)] * 2}, "init_image: give one for each image"),
        ({"feather_width": [2, 3]}, "2 feather widths for 1 images"),
    ],
)
def test_bad_input_is_a_clear_error(pipe, arguments, message):
    good = {"prompt": "a crack", "image": picture(64, 64), "mask_image": scratch(64, 64, 20), "num_inference_steps": 2}
    with pytest.raises(ValueError, match=message):
        pipe(**(good | arguments))


def test_a_little_diffusion_keeps_what_it_starts_from(pipe):
    """The background stays exact; inside lies the start, further away the more steps are taken from it."""
    image, mask = picture(64, 64), np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    start = np.array(image)
    start[mask] = 30
    distances = []
    for strength in (0.1, 0.9):
        result = pipe(
            "a crack",
            image=image,
            mask_image=Image.fromarray(mask),
            init_image=Image.fromarray(start),
            strength=strength,
            num_inference_steps=10,
            feather_width=1,
            generator=seeded(),
        )
        assert not changed(result.images[0], image)[~mask].any()
        assert result.visibility[0] > 1, "what it starts from counts as change"
        distances.append(np.abs(np.asarray(result.images[0], float) - 30)[mask].mean())
    assert distances[0] < distances[1] and distances[0] < 40


def test_images_of_one_prompt_are_those_of_several_calls(pipe):
    image, mask = picture(64, 64), scratch(64, 64, 20)
    options = {"image": image, "mask_image": mask, "num_inference_steps": 2}
    together = pipe("a crack", num_images_per_prompt=2, generator=[seeded(0), seeded(1)], **options)
    for number in range(2):
        alone = pipe("a crack", generator=seeded(number), **options)
        assert torch.allclose(together.latents[number], alone.latents[0], atol=1e-4)


def test_every_image_fades_over_its_own_width(pipe):
    image, mask = picture(64, 64), np.zeros((64, 64), bool)
    mask[10:50, 10:50] = True
    options = {"image": [image] * 2, "mask_image": [Image.fromarray(mask)] * 2, "num_inference_steps": 1}
    sharp, soft = pipe("a crack", generator=[seeded(), seeded()], feather_width=[1, 12], **options).images
    change = [np.abs(np.asarray(item, float) - np.asarray(image))[mask].mean() for item in (sharp, soft)]
    assert change[1] < 0.9 * change[0]


def run(pipe):
    return pipe(
        "a crack",
        image=picture(64, 64),
        mask_image=scratch(64, 64, 20),
        num_inference_steps=2,
        generator=seeded(),
        output_type="latent",
    )[0]


def test_from_pipe_and_custom_pipeline_give_the_same(pipe, base, tmp_path):
    expected = run(pipe)
    plain = StableDiffusionInpaintPipeline.from_pretrained(base)
    assert run(SardInpaintPipeline.from_pipe(plain)).equal(expected)
    for source in (sard_inpaint.__file__, str(base)):
        loaded = DiffusionPipeline.from_pretrained(base, custom_pipeline=source, trust_remote_code=True)
        assert type(loaded).__name__ == "SardInpaintPipeline"
        assert run(loaded).equal(expected)
    pipe.save_pretrained(tmp_path / "copy")
    assert run(SardInpaintPipeline.from_pretrained(tmp_path / "copy")).equal(expected)


@pytest.mark.parametrize("composite", ["contrast", "defect"])
@pytest.mark.parametrize("scheduler", [None, DPMSolverMultistepScheduler])
def test_where_the_defect_changes_nothing_nothing_is_written(pipe, scheduler, composite):
    """With the same words for defect and product both fills are one, and the part stays as it is, to the bit."""
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    image, mask = picture(90, 61), scratch(90, 61, 20)
    settings = dict(image=image, mask_image=mask, composite=composite, num_inference_steps=3, guidance_scale=1.0)
    same = pipe("a part", negative_prompt="a part", generator=seeded(), **settings)
    assert np.array_equal(np.asarray(same.images[0]), np.asarray(image)) and same.visibility == [0.0]
    settings["guidance_scale"] = 30.0
    other = pipe("a hole", negative_prompt="a part", generator=seeded(), **settings)
    assert other.visibility[0] > 0


def test_the_gate_opens_between_the_noise_and_twice_the_noise():
    difference = torch.tensor([0.0, 0.1, 0.15, 0.2, 0.5]).view(5, 1, 1, 1).expand(5, 3, 8, 8)
    gate = defect_gate(difference, torch.full((5, 1, 1, 1), 0.1))
    assert torch.allclose(gate.mean((1, 2, 3)), torch.tensor([0, 0, 0.5, 1, 1]), atol=1e-5)


def test_settings_go_with_the_adapter_that_brought_them(pipe, adapter, tmp_path):
    pipe.load_lora_weights(str(adapter.folder), weight_name=LORA_FILE)
    assert pipe._adapter_settings()["min_side"] == 16
    pipe.unload_lora_weights()
    (tmp_path / "plain").mkdir()
    shutil.copyfile(adapter.folder / LORA_FILE, tmp_path / "plain" / LORA_FILE)
    pipe.load_lora_weights(str(tmp_path / "plain"), weight_name=LORA_FILE)
    assert pipe._adapter_settings() == {}, "another LoRA under the same name"


def test_a_safety_checker_sees_the_pictures_and_blackens_those_it_takes_offence_at(pipe):
    images, masks = [picture(64, 64, 1), picture(64, 64, 2)], [scratch(64, 64, 20)] * 2
    options = dict(image=images, mask_image=masks, composite="pixels", feather_width=1, num_inference_steps=2)
    unchecked = pipe("a crack", generator=seeded(), **options)
    seen = []

    def extract(pictures, return_tensors):
        seen.extend(pictures)
        features = torch.zeros(len(pictures), 1)
        return SimpleNamespace(to=lambda _: SimpleNamespace(pixel_values=features))

    def check(images, clip_input):
        images[0] = torch.zeros_like(images[0])  # as diffusers' own does
        return images, [True, False]

    pipe.feature_extractor, pipe.safety_checker = extract, check
    checked = pipe("a crack", generator=seeded(), **options)
    with torch.no_grad():
        expected = pipe.image_processor.postprocess(pipe.decode_latents_to_images(checked.latents), "pil")
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(seen, expected, strict=True))
    assert checked.nsfw_content_detected == [True, False]
    assert not np.asarray(checked.images[0])[np.asarray(masks[0])].any()
    assert not changed(checked.images[1], unchecked.images[1]).any()
