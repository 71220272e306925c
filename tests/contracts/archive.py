"""What the archive asks of a disk: names that stand for whole contents or for nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from features.disk import Disk, Place


class DiskContract:
    """Override `disk`, and `root` where it is not a local folder."""

    @pytest.fixture
    def disk(self) -> Disk:
        raise NotImplementedError

    @pytest.fixture
    def root(self, tmp_path: Path) -> Place:
        return tmp_path

    def test_a_file_has_its_name_only_when_published(self, disk: Disk, root: Place) -> None:
        temporary, final = root / "a" / ".f.tmp", root / "b" / "f"
        opened = disk.open(temporary)
        opened.write(b"one")
        opened.flush()
        assert not final.exists()
        opened.write(b"two")
        disk.publish(temporary, final, opened)
        assert final.read_bytes() == b"onetwo"
        with final.open("rb") as again:
            assert again.read(3) == b"one"
        assert not temporary.exists()
        assert opened.closed

    def test_a_file_that_is_let_go_has_no_name(self, disk: Disk, root: Place) -> None:
        opened = disk.open(root / "a" / ".f.tmp")
        opened.write(b"one")
        opened.close()
        assert [p.name for p in (root / "a").glob("f*")] == []

    def test_a_name_is_given_once(self, disk: Disk, root: Place) -> None:
        path = root / "m" / "1.json"
        disk.create(path, b"first")
        with pytest.raises(FileExistsError):
            disk.create(path, b"second")
        assert path.read_bytes() == b"first"
        assert [p.name for p in path.parent.glob("*")] == ["1.json"]

    def test_of_many_at_once_one_gives_the_name(self, disk: Disk, root: Place) -> None:
        path = root / "m" / "1.json"
        disk.create(root / "m" / "0.json", b"")

        def created(n: int) -> bytes | None:
            content = str(n).encode() * 1_000
            try:
                disk.create(path, content)
            except FileExistsError:
                return None
            return content

        with ThreadPoolExecutor(8) as pool:
            found = [content for content in pool.map(created, range(32)) if content]
        assert found == [path.read_bytes()]

    def test_what_was_published_is_listed_at_once(self, disk: Disk, root: Place) -> None:
        for n in (2, 1, 3):
            disk.create(root / "m" / f"0-{n}.json", b"")
            assert (root / "m" / f"0-{n}.json").exists()
        assert [p.name for p in sorted((root / "m").glob("0-*.json"))] == [
            "0-1.json",
            "0-2.json",
            "0-3.json",
        ]
        assert list((root / "none").glob("*")) == []

    def test_what_is_missing_is_said(self, disk: Disk, root: Place) -> None:
        with pytest.raises(FileNotFoundError):
            (root / "none").read_bytes()
        with pytest.raises(FileNotFoundError):
            (root / "none").open("rb")

    def test_removing_what_is_gone_is_no_error(self, disk: Disk, root: Place) -> None:
        disk.create(root / "x", b"")
        disk.remove(root / "x")
        disk.remove(root / "x")
        assert not (root / "x").exists()
