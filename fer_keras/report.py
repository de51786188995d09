"""Reports: executed notebooks as pages that open without a network, and a suite's results beside the published ones."""

from pathlib import Path

from fer_keras.run import write_text


def render(notebook: str | Path, target: str | Path | None = None, without_faces: bool = False) -> Path:
    """Turn an executed notebook into a page that stands alone, `report.html` beside it by default.

    Args:
        notebook: the executed notebook.
        target: where to write the page.
        without_faces: leave out the pictures of cells tagged `faces`, for pages that are published.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: if there is no such notebook.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    notebook = Path(notebook)
    if not notebook.is_file():
        raise FileNotFoundError(f"There is no notebook {notebook}. Execute one first, e.g. with papermill.")
    config = Config()
    config.HTMLExporter.exclude_input = True
    config.HTMLExporter.exclude_input_prompt = config.HTMLExporter.exclude_output_prompt = True
    config.HTMLExporter.embed_images = True
    # No formulas and no widgets: nothing is fetched when the page opens.
    config.HTMLExporter.mathjax_url = config.HTMLExporter.require_js_url = config.HTMLExporter.mermaid_js_url = ""
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"injected-parameters", "parameters"}
    if without_faces:
        config.TagRemovePreprocessor.remove_all_outputs_tags = {"faces"}
    page, _ = HTMLExporter(config=config).from_filename(str(notebook))
    target = Path(target) if target else notebook.with_name("report.html")
    write_text(target, page)
    return target
