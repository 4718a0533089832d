"""Results are kept while there is room, and are the same either way."""

from sard_lora.caching import Kept


def test_what_fits_is_made_once_and_what_does_not_every_time():
    made = []
    double = Kept(lambda text: made.append(text) or 2 * text, len, limit=7)
    asked = ["a", "bbb", "cc", "a", "cc", "bbb"]
    assert [double(text) for text in asked] == [2 * text for text in asked]
    assert made == ["a", "bbb", "cc", "bbb"] and double.results == {"a": "aa", "cc": "cccc"}
