"""Notices that the machine is taken away: a poll of an address, and signals."""

import http.server
import os
import signal
import threading
import time

import pytest
from trainer import run_fit

from leafe_jax.errors import UserError
from leafe_jax.runtime import preemption


@pytest.mark.slow
def test_a_maintenance_notice_saves_and_leaves(tmp_path, monkeypatch):
    answers = ["NONE", "FALSE", "TERMINATE_ON_HOST_MAINTENANCE"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            body = (answers.pop(0) if len(answers) > 1 else answers[0]).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.2)
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    with pytest.raises(SystemExit) as left:
        run_fit(tmp_path / "cut", num_epochs=50, notice_url=url, checkpoint_every=1000,
                progress=lambda *_: time.sleep(0.05))  # fmt: skip
    server.shutdown()
    assert left.value.code == preemption.EXIT_PREEMPTED and len(answers) == 1
    assert [p for p in (tmp_path / "cut").iterdir() if p.name.isdigit()]


@pytest.mark.slow
def test_a_poller_that_dies_ends_the_training(tmp_path, monkeypatch):
    """Otherwise it would go on, and no notice would be seen."""

    def die(*_, **__):
        raise RuntimeError("what it died of")

    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(preemption.urllib.request, "urlopen", die)
    message = "train.notice_url = 'http://here/': polling has failed.*RuntimeError: what it died of"
    with pytest.raises(UserError, match=message):
        run_fit(tmp_path, notice_url="http://here/", progress=lambda *_: time.sleep(0.05))


def test_a_signal_that_nobody_has_seen_is_sent_again():
    got = []
    previous = signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
    try:
        with preemption.Preemption("") as context:
            os.kill(os.getpid(), signal.SIGTERM)
            assert got == [] and context.asked()
        assert got == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_notice_that_comes_too_late_kills_nobody(tmp_path, monkeypatch):
    """The answer is on its way while the training ends."""
    asked, answer, got = threading.Event(), threading.Event(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.set()
            answer.wait(20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"TERMINATE_ON_HOST_MAINTENANCE")

        def log_message(self, *_):
            pass

    monkeypatch.setattr(preemption, "_POLL_SECONDS", 0.1)
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    previous = signal.signal(signal.SIGTERM, lambda *_: got.append("SIGTERM"))
    before = set(threading.enumerate())
    try:
        with preemption.Preemption(f"http://127.0.0.1:{server.server_port}/") as context:
            (poller,) = set(threading.enumerate()) - before
            monkeypatch.setattr(preemption, "_POLL_SECONDS", 20)  # the answer may take its time
            assert asked.wait(20)
        answer.set()
        poller.join(20)
        time.sleep(0.1)
    finally:
        signal.signal(signal.SIGTERM, previous)
        server.shutdown()
    assert not poller.is_alive() and got == [] and not context.asked()
