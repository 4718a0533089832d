"""The studio's page: gradio components around a canvas and a row of cards of our own (`templates/studio_*`).

The canvas and the cards are `gr.HTML` with scripts. What they are sent is what they shall show; what they send back is
what the user did with it:

    canvas   sent {"picture": data URL, "width", "height"} and / or {"mask": data URL}; sends the mask's data URL
    cards    sent {"normal": data URL, "box", "least", "candidates": [...]}; sends the numbers of the chosen candidates

In a mask's data URL the opaque pixels are the mask, at the picture's own size. Problems with the input are shown on
the page, and leave everything else on it as it was.
"""

import base64
import html
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported; nothing is sent anywhere

import gradio as gr
import numpy as np
import torch
from PIL import Image

from sard_lora.pipelines.sard_inpaint import window_box
from sard_lora.report import data_url, outline
from sard_lora.studio import Mask, Picture, Result, Studio

INK = (255, 60, 30)
PICTURE_SIDE = 4096
CARD_SIDE = 512
WELCOME = "Load a picture of a good part, mark where the defect goes, generate, and keep the believable ones."
NO_CALLS_OUT = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def serve(studio: Studio, host: str, port: int, block: bool = True) -> gr.Blocks:
    """Serve the page at http://host:port; with `block`, until it is interrupted. Raises OSError for a taken port."""
    uploads = tempfile.TemporaryDirectory(prefix="sard-lora-studio-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name
    # gradio asks itself whether it is up, which must not go through a company's proxy
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join(filter(None, [direct, "localhost", "127.0.0.1", host]))
    blocks = page(studio)
    blocks.uploads = uploads  # they live as long as the page does
    theme = gr.themes.Default(
        primary_hue="orange", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["monospace"]
    )
    try:
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            ssr_mode=False,
            quiet=True,
            show_error=True,
            prevent_thread_lock=True,
            footer_links=[],
            theme=theme,
            css=_template("studio.css"),
            head=f'<meta http-equiv="Content-Security-Policy" content="{NO_CALLS_OUT}">',
        )
    except OSError as error:
        what = "cannot listen here: the port is taken, or the address is not this machine's"
        raise OSError(f"{host}:{port}: {what}. Choose another --port or --host") from error
    if block:
        print(f"studio at http://{host}:{port}, keeping images in {studio.config.output}; Ctrl-C ends it", flush=True)
        blocks.block_thread()
    return blocks


def page(studio: Studio) -> gr.Blocks:
    """The page: what to make on the left over the canvas, candidates on the right."""
    names = list(studio.adapters)
    first = studio.adapters[names[0]].config
    with gr.Blocks(title="sard-lora studio", analytics_enabled=False, fill_width=True) as blocks:
        picture, drawn, results, kept = gr.State(None), gr.State(None), gr.State([]), gr.State([])
        with gr.Row(elem_id="top"):
            gr.HTML("<h1>sard-lora studio</h1>")
            tally = gr.HTML(_tally(studio, names[0]), elem_id="tally")
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=480):
                with gr.Row(elem_classes="bar"):
                    load = gr.UploadButton("Load a normal image", elem_id="load", min_width=190, scale=0)
                    adapter = gr.Dropdown(_adapter_choices(studio), value=names[0], label="Adapter", min_width=180)
                    defect = gr.Dropdown(first.defects, value=first.defects[0], label="Defect", min_width=140)
                random = gr.Button("Random mask", elem_id="random")  # out of sight; the toolbar's button presses it
                canvas = gr.HTML(
                    html_template=_template("studio_canvas.html"),
                    js_on_load=_template("studio_canvas.js"),
                    apply_default_css=False,
                    elem_id="canvas",
                )
            with gr.Column(scale=5, min_width=420):
                with gr.Row(elem_classes="bar"):
                    count = gr.Slider(1, 8, 4, step=1, label="Candidates", min_width=130, buttons=[])
                    strength = first.sampling.guidance_scale
                    guidance = gr.Slider(1, 10, strength, step=0.5, label="Guidance", min_width=130, buttons=[])
                    seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=90, scale=0)
                with gr.Row(elem_classes="bar"):
                    make = gr.Button("Generate", variant="primary", elem_id="generate", min_width=130)
                    keep = gr.Button("Keep chosen", elem_id="keep", min_width=130)
                    vary = gr.Checkbox(True, label="new seed each time", container=False, min_width=190, scale=0)
                message = gr.HTML(_notice(WELCOME), elem_id="message")
                cards = gr.HTML(
                    html_template='<div class="cards"></div>',
                    js_on_load=_template("studio_cards.js"),
                    apply_default_css=False,
                    elem_id="cards",
                )

        def listen(trigger: Callable, handle: Callable, inputs: list, outputs: list) -> None:
            """Run `handle`, which returns the outputs and a message, on an event; a problem is shown, and no more."""

            def run(*values: Any) -> list:
                try:
                    *shown, text = handle(*values)
                except (ValueError, OSError) as error:
                    return [*(gr.skip() for _ in outputs), _notice(str(error), problem=True)]
                return [*shown, _notice(text)]

            trigger(run, inputs, [*outputs, message], trigger_mode="once", show_progress_on=[cards])

        actions = _Actions(studio)
        listen(adapter.change, actions.choose, [adapter], [defect, guidance, tally])
        listen(load.upload, actions.open, [load], [picture, drawn, results, kept, canvas, cards])
        listen(random.click, actions.draw, [adapter, defect, picture], [drawn, canvas])
        inputs = [adapter, defect, picture, canvas, drawn, count, guidance, seed, vary]
        listen(make.click, actions.generate, inputs, [results, kept, cards, seed])
        listen(keep.click, actions.keep, [cards, results, kept], [kept, cards, tally])
    return blocks


class _Actions:
    """What the page's controls do: their values in; what to show, and a message, out."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def choose(self, adapter: str) -> tuple:
        config = self.studio.adapters[adapter].config
        defects = gr.Dropdown(choices=config.defects, value=config.defects[0])
        text = f"{adapter} writes {', '.join(config.defects)} on {config.category}."
        return defects, config.sampling.guidance_scale, _tally(self.studio, adapter), text

    def open(self, path: str) -> tuple:
        try:
            picture = self.studio.open(path)
        except ValueError as error:  # under the name that the user knows, not the one in the folder of uploads
            raise ValueError(str(error).replace(f"{Path(path).parent}{os.sep}", "")) from error
        shown = picture.image.copy()
        shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        size = {"width": picture.image.width, "height": picture.image.height}
        canvas = {"picture": data_url(shown, "JPEG", quality=95), **size}
        text = (
            f"{picture.path.name}, {picture.image.width} × {picture.image.height} pixels. Mark where the defect goes."
        )
        return picture, None, [], [], canvas, {"candidates": []}, text

    def draw(self, adapter: str, defect: str, picture: Picture | None) -> tuple:
        mask = self.studio.random_mask(adapter, defect, _loaded(picture))
        text = f"A mask like that of {mask.origin}. Paint on it, or generate."
        return (adapter, defect, mask), {"mask": _mask_url(mask.pixels)}, text

    def generate(
        self,
        adapter: str,
        defect: str,
        picture: Picture | None,
        painted: str | dict | None,
        drawn: tuple[str, str, Mask] | None,
        count: int,
        guidance: float,
        seed: int | None,
        vary: bool,
    ) -> tuple:
        picture = _loaded(picture)
        mask = Mask(_mask(painted, picture))
        if drawn is not None and drawn[:2] == (adapter, defect) and np.array_equal(drawn[2].pixels, mask.pixels):
            mask = drawn[2]  # as it was drawn, and for what: it has that defect's fringe
        seed = int(seed or 0)
        results = self.studio.generate(adapter, defect, picture, mask, int(count), guidance, seed)
        text = f"Seed {seed}. Choose the good ones, and keep them."
        if not any(result.visible for result in results):
            text = f"Seed {seed}: no defect can be seen. Raise the guidance, or make the mask larger."
        return results, [], self._cards(results, []), seed + 1 if vary else seed, text

    def keep(self, chosen: list[int] | Any, results: list[Result], kept: list[int]) -> tuple:
        new = [number for number in chosen or [] if isinstance(number, int) and number not in kept]
        if not new:
            raise ValueError("No candidate is chosen. Click one, or press its number, then keep it")
        paths = self.studio.keep([results[number] for number in new])
        kept = [*kept, *new]
        text = f"Kept {', '.join(path.name for path in paths)} in {paths[0].parent}."
        return kept, self._cards(results, kept), _tally(self.studio, results[0].adapter), text

    def _cards(self, results: Sequence[Result], kept: Sequence[int]) -> dict[str, Any]:
        """The candidates' surroundings of the mask, and those of the normal image with the mask outlined."""
        mask = np.logical_or.reduce([result.mask for result in results])
        sampling = self.studio.adapters[results[0].adapter].config.sampling
        window = window_box(torch.from_numpy(mask), sampling.context, sampling.min_side)
        height, width = mask.shape
        left, top = max(window.left, 0), max(window.top, 0)
        box = left, top, min(window.left + window.width, width), min(window.top + window.height, height)
        critic = self.studio.has_critic(results[0].adapter)
        normal = outline(results[0].picture.image.crop(box), mask[box[1] : box[3], box[0] : box[2]])
        candidates = [
            {
                "image": data_url(_small(result.image.crop(box))),
                "score": result.record["critic_score"] if critic else None,
                "visibility": result.record["visibility"],
                "visible": result.visible,
                "kept": number in kept,
            }
            for number, result in enumerate(results)
        ]
        share = [box[0] / width, box[1] / height, (box[2] - box[0]) / width, (box[3] - box[1]) / height]
        least = self.studio.config.min_visibility
        return {"normal": data_url(_small(normal)), "box": share, "least": least, "candidates": candidates}


def _loaded(picture: Picture | None) -> Picture:
    if picture is None:
        raise ValueError("There is no picture yet. Load a normal image first")
    return picture


def _mask(painted: str | dict | None, picture: Picture) -> np.ndarray:
    """(H, W) bool from the canvas, all False where nothing was painted."""
    if not isinstance(painted, str) or not painted.startswith("data:image/png;base64,"):
        return np.zeros((picture.image.height, picture.image.width), bool)
    content = base64.b64decode(painted.split(",", 1)[1])
    with Image.open(io.BytesIO(content)) as image:
        mask = np.asarray(image.convert("RGBA").getchannel("A")) > 127
    if mask.shape != (picture.image.height, picture.image.width):
        raise ValueError("The mask belongs to another picture. Clear it, and paint it again")
    return mask


def _mask_url(mask: np.ndarray) -> str:
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = (*INK, 255)
    return data_url(Image.fromarray(pixels))


def _small(image: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.thumbnail((CARD_SIDE, CARD_SIDE))
    return image


def _adapter_choices(studio: Studio) -> list[tuple[str, str]]:
    configs = {name: adapter.config for name, adapter in studio.adapters.items()}
    return [(name if name == c.category else f"{name} ({c.category})", name) for name, c in configs.items()]


def _notice(text: str, problem: bool = False) -> str:
    role, kind = ("alert", "problem") if problem else ("status", "")
    return f'<div role="{role}" class="notice {kind}">{html.escape(text)}</div>'


def _tally(studio: Studio, adapter: str) -> str:
    """How many images are kept so far, by defect, and where."""
    labelled = studio.set_of(adapter)
    counts = {defect: len(labelled.names(defect)) for defect in studio.adapters[adapter].config.defects}
    each = ", ".join(f"{html.escape(defect)} {count}" for defect, count in counts.items() if count)
    where = f"<code>{html.escape(str(labelled.root))}</code>"
    return f"<b>{labelled.count} kept</b>{f' ({each})' if each else ''} in {where}"


def _template(name: str) -> str:
    return Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")
