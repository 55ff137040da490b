"""The page, by gradio: drop an image, see what the model sees, click a pixel."""

from typing import Any

import gradio as gr

from .looking import MOST_BYTES, Looker, open_upload


def build_page(looker: Looker, title: str) -> gr.Blocks:
    """The page of one model."""
    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}")
        file = gr.File(label="An image", file_types=["image"], elem_id="upload")
        with gr.Row():
            with gr.Column():
                gr.Markdown("What the model is given")
                photo = gr.Image(show_label=False, interactive=False, elem_id="photo")
            with gr.Column():
                gr.Markdown("What it sees")
                shares = gr.Label(show_label=False, elem_id="shares")
        gr.Markdown("Where it sees it (Grad-CAM)" if looker.is_classifier else "What it finds")
        found = gr.Image(show_label=False, interactive=False, elem_id="found")

        def look(path: str | None) -> tuple[Any, Any, Any]:
            if path is None:
                return None, None, None
            image = _opened(path)
            finding = looker.look(image)
            return looker.input_of(image), finding.shares, finding.picture

        file.change(look, file, [photo, shares, found])
        if looker.is_classifier:
            gr.Markdown(
                "Click a pixel of what the model is given, to see what flows into it along each path of the middle scan."
            )
            attention = gr.Image(show_label=False, interactive=False, elem_id="attention")

            def attend(path: str | None, shown: Any, clicked: gr.SelectData) -> Any:
                if path is None or shown is None:
                    return None
                height, width = shown.shape[:2]
                column, row = clicked.index
                return looker.attention(_opened(path), column / width, row / height)

            photo.select(attend, [file, photo], attention)
    return page


def serve(looker: Looker, title: str, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Open the page on this machine, and nowhere else unless `host` says so. Returns its address.

    Args:
        looker: the model.
        title: of the page.
        host: address to listen on; "0.0.0.0" shows the page to the whole network.
        port: of the address.
        block: stay until Ctrl-C.

    Raises:
        OSError: the port is taken.
    """
    page = build_page(looker, title)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MOST_BYTES,
        prevent_thread_lock=not block,
        quiet=True,
        show_error=True,
    )
    return str(address)


def _opened(path: str) -> Any:
    try:
        return open_upload(path)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
