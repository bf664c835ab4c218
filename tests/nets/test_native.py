"""C that is compiled at its first use: what it answers, and what is said where it cannot be compiled."""

import pytest

from scorefield.nets.native import NoCompilerError, library


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "twice.c"
    path.write_text("int twice(int x) { return FACTOR * x; }")
    return path


def test_functions_are_compiled_with_their_definitions(source):
    assert [library(source, f"FACTOR={n}").twice(21) for n in (2, 3)] == [42, 63]


def test_a_file_is_compiled_once(source):
    first = library(source, "FACTOR=2")
    source.unlink()
    assert library(source, "FACTOR=2") is first


def test_without_a_compiler_it_says_what_to_install(source, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(NoCompilerError, match=r"no C compiler 'no-such-compiler' was found; install .* variable CC"):
        library(source, "FACTOR=2")


def test_what_cannot_be_loaded_is_said_with_another_place(source, monkeypatch, tmp_path):
    """As on a machine that runs no programs from the folder for temporary files."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho no library > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(NoCompilerError, match=r"twice\.c cannot be loaded: .*name another folder in TMPDIR"):
        library(source, "FACTOR=5")


def test_what_the_compiler_says_is_passed_on(source):
    with pytest.raises(NoCompilerError, match=r"cc cannot compile twice\.c: .*name another compiler in CC"):
        library(source, "FACTOR=(")
