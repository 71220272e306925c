"""What the archive asks of a disk: names that stand for whole contents or for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.disk import Disk


class DiskContract:
    """Override `disk`."""

    @pytest.fixture
    def disk(self) -> Disk:
        raise NotImplementedError

    def test_a_file_has_its_name_only_when_published(self, disk: Disk, tmp_path: Path) -> None:
        temporary, final = tmp_path / "a" / ".f.tmp", tmp_path / "b" / "f"
        opened = disk.open(temporary)
        opened.write(b"one")
        opened.flush()
        assert not final.exists()
        opened.write(b"two")
        disk.publish(temporary, final, opened)
        assert final.read_bytes() == b"onetwo"
        assert not temporary.exists()
        assert opened.closed

    def test_a_temporary_name_is_not_shared(self, disk: Disk, tmp_path: Path) -> None:
        with disk.open(tmp_path / "x"), pytest.raises(FileExistsError):
            disk.open(tmp_path / "x")

    def test_a_name_is_given_once(self, disk: Disk, tmp_path: Path) -> None:
        path = tmp_path / "m" / "1.json"
        disk.create(path, b"first")
        with pytest.raises(FileExistsError):
            disk.create(path, b"second")
        assert path.read_bytes() == b"first"
        assert [p.name for p in path.parent.iterdir()] == ["1.json"]

    def test_removing_what_is_gone_is_no_error(self, disk: Disk, tmp_path: Path) -> None:
        disk.create(tmp_path / "x", b"")
        disk.remove(tmp_path / "x")
        disk.remove(tmp_path / "x")
        assert not (tmp_path / "x").exists()
