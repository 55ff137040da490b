"""The settings of the published runs, one YAML file each; `visionssm train --recipe NAME` takes them."""

from pathlib import Path

from visionssm._messages import near_matches


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes.

    Args:
        pattern: shell-style wildcard.

    Example:
        >>> list_recipes("vim_*_in1k")
        ['vim_small_in1k', 'vim_small_plus_in1k', 'vim_tiny_in1k', 'vim_tiny_plus_in1k']
    """
    return sorted(file.stem for file in Path(__file__).parent.glob(f"{pattern}.yaml"))


def recipe_file(name: str) -> Path:
    """The YAML file of a recipe.

    Raises:
        ValueError: there is no such recipe; the message gives near matches.

    Example:
        >>> recipe_file("vmamba_tiny_in1k").name
        'vmamba_tiny_in1k.yaml'
    """
    file = Path(__file__).parent / f"{name}.yaml"
    if name not in list_recipes():
        hint = near_matches(name, list_recipes()) or "; `visionssm list --recipes` lists them all"
        raise ValueError(f"there is no recipe {name!r}{hint}")
    return file


def recipe_facts(name: str) -> dict[str, str]:
    """What the comments at the top of a recipe say: its `title`, `source`, `hardware` and `published` score.

    Example:
        >>> recipe_facts("vmamba_tiny_in1k")["published"]
        '82.6 % top-1.'
    """
    lines = [line.removeprefix("#").strip() for line in recipe_file(name).read_text(encoding="utf-8").splitlines()[:6]]
    named = (line.partition(":") for line in lines if line.startswith(("Source:", "Hardware:", "Published:")))
    return {"title": lines[0], **{key.lower(): value.strip() for key, _, value in named}}
