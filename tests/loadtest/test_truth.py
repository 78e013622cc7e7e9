"""Which answers the truth calls wrong.  Times are seconds on one clock; max_staleness is 2."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from loadtest.truth import Change, History, Person, Session, Truth, Wrong

MAX_STALENESS = 2.0
ALWAYS = 100.0


def session(name: str = "1") -> Session:
    person = Person(f"person-{name}", f"{name}@example.test", History("Ada", 0.0))
    return Session(f"session-{name}", f"token-{name}", person, History(True, 0.0), History("tomorrow", 0.0))


def body(of: Session, *, first_name: str = "Ada", expires_at: str = "tomorrow", active: bool = True) -> bytes:
    identity = {"id": of.person.id, "traits": {"email": of.person.email, "name": {"first": first_name}}}
    return json.dumps({"id": of.id, "active": active, "expires_at": expires_at, "identity": identity}).encode()


@pytest.fixture
def ada() -> Session:
    return session()


def test_a_live_session_is_answered_as_it_is(ada: Session) -> None:
    assert ada.judge(200, body(ada), 1.0, 1.1) is None


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_a_live_session_is_wrong(ada: Session, status: int) -> None:
    assert ada.judge(status, b"{}", 1.0, 1.1) is Wrong.DENIED


def test_a_refusal_that_began_before_the_revocation_and_ended_after_it_is_right(ada: Session) -> None:
    ada.is_active.change(False, 1.05)
    assert ada.judge(401, b"{}", 1.0, 1.1) is None
    assert ada.judge(401, b"{}", 1.0, 1.04) is Wrong.DENIED


@pytest.mark.parametrize(
    "foreign",
    [
        body(session("2")),
        body(Session("session-1", "token", session("2").person, History(True, 0.0), History("tomorrow", 0.0))),
        body(Session("session-2", "token", session("1").person, History(True, 0.0), History("tomorrow", 0.0))),
        body(session(), active=False),
        b"{}",
        b"[]",
        b"no JSON",
        b"",
    ],
    ids=["both", "identity", "session", "inactive", "empty object", "array", "no JSON", "nothing"],
)
def test_a_200_that_is_not_this_session_is_foreign(ada: Session, foreign: bytes) -> None:
    assert ada.judge(200, foreign, 1.0, 1.1) is Wrong.FOREIGN


Old = tuple[Callable[[Session], Change[bool] | Change[str]], Wrong]
CHANGES: dict[str, Old] = {
    "revoked": (lambda of: of.is_active.change(False, 1.0), Wrong.REVOKED),
    "renamed": (lambda of: of.person.first_name.change("Grace", 1.0), Wrong.OLD),
    "extended": (lambda of: of.expires_at.change("the day after", 1.0), Wrong.OLD),
}


@pytest.fixture(params=CHANGES)
def old(request: pytest.FixtureRequest) -> Old:
    return CHANGES[str(request.param)]


def test_an_old_answer_is_right_as_long_as_nothing_is_acknowledged(ada: Session, old: Old) -> None:
    """Whatever the publisher is told in the meantime: until then the change has not been announced."""
    change, _ = old
    change(ada)
    assert ada.judge(200, body(ada), ALWAYS, ALWAYS) is None


def test_an_old_answer_begun_within_max_staleness_of_the_acknowledgement_is_right(ada: Session, old: Old) -> None:
    change, _ = old
    change(ada).acknowledged(5.0, MAX_STALENESS)
    assert ada.judge(200, body(ada), 7.0, ALWAYS) is None


def test_an_old_answer_begun_later_than_max_staleness_is_wrong(ada: Session, old: Old) -> None:
    change, wrong = old
    change(ada).acknowledged(5.0, MAX_STALENESS)
    assert ada.judge(200, body(ada), 7.001, 7.1) is wrong


def test_an_old_answer_begun_after_a_receipt_is_wrong(ada: Session, old: Old) -> None:
    change, wrong = old
    done = change(ada)
    done.acknowledged(5.0, MAX_STALENESS)
    done.receipted(5.0)
    assert ada.judge(200, body(ada), 5.001, 5.1) is wrong


def test_an_old_answer_begun_before_a_receipt_and_ended_after_it_is_right(ada: Session, old: Old) -> None:
    change, _ = old
    change(ada).receipted(5.0)
    assert ada.judge(200, body(ada), 5.0, 5.1) is None


def test_a_late_receipt_makes_an_old_answer_no_more_lawful(ada: Session, old: Old) -> None:
    change, wrong = old
    done = change(ada)
    done.acknowledged(5.0, MAX_STALENESS)
    done.receipted(9.0)
    assert ada.judge(200, body(ada), 8.0, 8.1) is wrong


def test_a_new_answer_is_right_as_soon_as_the_change_has_begun_and_wrong_before(ada: Session) -> None:
    ada.person.first_name.change("Grace", 1.0)
    assert ada.judge(200, body(ada, first_name="Grace"), 0.5, 1.1) is None
    assert ada.judge(200, body(ada, first_name="Grace"), 0.5, 0.9) is Wrong.OLD


def test_the_last_but_one_answer_is_wrong_once_the_last_change_is_over_and_any_older_one(ada: Session) -> None:
    """One receipt speaks for all changes before it, acknowledged or not."""
    ada.person.first_name.change("Grace", 1.0)
    ada.person.first_name.change("Edith", 2.0).receipted(3.0)
    assert ada.judge(200, body(ada, first_name="Grace"), 2.9, 3.1) is None
    for name in ("Ada", "Grace"):
        assert ada.judge(200, body(ada, first_name=name), 3.1, 3.2) is Wrong.OLD
    assert ada.judge(200, body(ada, first_name="Edith"), 3.1, 3.2) is None


def test_a_value_that_is_not_known_yet_may_be_any_and_then_no_other(ada: Session) -> None:
    extension = ada.expires_at.change(None, 1.0)
    assert ada.judge(200, body(ada, expires_at="the day after"), 1.0, 1.1) is None
    extension.value = "the day after"
    assert ada.judge(200, body(ada, expires_at="never"), 1.0, 1.1) is Wrong.OLD


def test_a_change_of_the_person_shows_in_all_its_sessions(ada: Session) -> None:
    other = Session("session-9", "token-9", ada.person, History(True, 0.0), History("tomorrow", 0.0))
    ada.person.first_name.change("Grace", 1.0).receipted(2.0)
    assert other.judge(200, body(other), 3.0, 3.1) is Wrong.OLD


def test_one_person_is_changed_by_one_at_a_time() -> None:
    truth = Truth(random.Random(0))
    ada = session()
    truth.signed_in(ada)
    truth.signed_in(Session("session-9", "token-9", ada.person, History(True, 0.0), History("tomorrow", 0.0)))
    taken = truth.take()
    assert taken is not None
    assert truth.take() is None
    truth.give_back(taken)
    assert truth.take() is not None


def test_a_revoked_session_is_asked_about_and_never_changed_again() -> None:
    truth = Truth(random.Random(0))
    truth.signed_in(session())
    taken = truth.take()
    assert taken is not None
    truth.give_back(taken, is_revoked=True)
    assert truth.take() is None
    assert {truth.to_ask_about() for _ in range(20)} == {taken, None}


def test_a_token_is_not_shown() -> None:
    assert "token-1" not in repr(session())
