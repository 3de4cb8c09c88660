"""What is sent to a webhook, signed as the specification's own example is."""

import base64
import json

import pytest

from opusclip_mlops.webhooks import (
    Message,
    Receiver,
    fault_of_url,
    signature,
    slack_body,
    standard_body,
)


def test_the_example_of_the_specification_is_signed_so() -> None:
    """Id, time and body as they are sent."""
    message = Message("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}')
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    wanted = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(message, key, sent_s=1_614_265_330) == wanted
    assert message.headers([key, key], sent_s=1_614_265_330) == {
        "content-type": "application/json",
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": f"{wanted} {wanted}",
    }
    assert "webhook-signature" not in message.headers([], sent_s=1)


def test_a_body_says_what_it_is_and_when() -> None:
    """Programs find type, time and data; people one line that no sign of theirs can break."""
    body = json.loads(standard_body("alert.raised", 1_767_225_600_123, {"alert": "größer"}))
    assert body == {
        "type": "opusclip.alert.raised",
        "timestamp": "2026-01-01T00:00:00.123Z",
        "data": {"alert": "größer"},
    }
    assert json.loads(slack_body("a <b> & c")) == {"text": "a &lt;b&gt; &amp; c"}


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("https://example.com/x", ""),
        ("http://example.com/x", "https"),
        ("ftp://example.com", "no address"),
        ("https://", "no address"),
        ("https://a:b@example.com/", "no name or password"),
        ("https://example.com:99999/", "no address"),
    ],
)
def test_an_address_is_https_and_holds_no_name(url: str, part: str) -> None:
    """Anything else is refused with what is right."""
    fault = fault_of_url(url, allow_http=False)
    assert part in fault
    assert bool(fault) == bool(part)


def test_an_address_is_shown_by_its_host_alone() -> None:
    """Its path may be a secret."""
    shown = repr(Receiver(name="chat", url="https://hooks.example.com/T0/secret"))
    assert shown == "Receiver('chat' to 'hooks.example.com')"
