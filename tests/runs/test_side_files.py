from pathlib import Path

from hmoe.runs.side_files import check_side_files, hash_side_files


def test_side_files_that_changed_or_are_lost_are_told(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "generation_config.json").write_text("{}")
    state = {"side_files": hash_side_files(tmp_path)}
    told: list[str] = []
    check_side_files(tmp_path, state, told.append)
    assert told == []
    (tmp_path / "chat_template.jinja").write_text("{{ massages }}")
    (tmp_path / "generation_config.json").unlink()
    check_side_files(tmp_path, state, told.append)
    assert "chat_template.jinja: was changed" in told[0]
    assert "generation_config.json: is missing" in told[1]
