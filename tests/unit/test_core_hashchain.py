import hashlib

import pytest

from rlaif.core.canonical import canonical_json, digest
from rlaif.core.hashchain import GENESIS_SHA256, chain_sha256


def test_a_link_is_the_hash_of_the_previous_hash_and_the_bytes():
    assert chain_sha256(GENESIS_SHA256, b"abc") == hashlib.sha256(bytes(32) + b"abc").hexdigest()


def test_a_change_anywhere_changes_every_later_link():
    def head(events):
        link = GENESIS_SHA256
        for event in events:
            link = chain_sha256(link, event)
        return link

    assert head([b"a", b"b", b"c"]) != head([b"A", b"b", b"c"])
    assert head([b"a", b"b", b"c"]) != head([b"b", b"a", b"c"])


def test_equal_values_have_equal_bytes():
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_what_has_no_canonical_form_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))
