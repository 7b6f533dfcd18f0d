from __future__ import annotations

import threading

import pytest

from histolight.threads import map_ahead


def test_results_come_in_order_and_an_error_ends_them() -> None:
    assert list(map_ahead(lambda item: item * 2, range(50), 4, 5)) == [item * 2 for item in range(50)]

    def fail(item: int) -> int:
        if item == 7:
            raise OSError("damaged")
        return item

    seen = []
    with pytest.raises(OSError, match="damaged"):
        for item in map_ahead(fail, range(1000), 4, 5):
            seen.append(item)
    assert seen == list(range(7))


def test_no_more_is_begun_than_is_to_wait_and_nothing_after_the_last_result_taken() -> None:
    begun: list[int] = []
    results = map_ahead(begun.append, range(1000), 2, 3)
    next(results)
    assert len(begun) <= 4
    results.close()
    assert len(begun) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
