"""The beginning of a command: Python's search for garbage stands still while modules are imported, and only then."""

import gc

import pytest

from mini_chat_gpt.entry import importing


def test_no_garbage_is_looked_for_during_imports():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_garbage_is_looked_for_again_after_an_import_that_failed():
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_who_has_turned_the_search_off_finds_it_off():
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_imported_is_not_looked_through_later():
    with importing():
        imported = [[]]
    assert not any(thing is imported for thing in gc.get_objects())
    gc.unfreeze()
