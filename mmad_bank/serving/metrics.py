"""What Prometheus is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mmad_bank._internal.extras import import_extra

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one service; they are its own, so that a process may hold several.

    Args:
        resident: Function that returns the number of models in memory and their bytes.
        waiting: Function that returns the number of requests that wait.
    """

    def __init__(self, resident: Callable[[], tuple[int, int]], waiting: Callable[[], int]) -> None:
        client = import_extra("prometheus-client", "prometheus_client", "the service", "serve")
        self._client = client
        self._registry = registry = client.CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> object:
            return client.Counter(f"mmad_bank_{name}", words, labels, registry=registry)

        def histogram(name: str, words: str, buckets: Iterable[float], *labels: str) -> object:
            return client.Histogram(f"mmad_bank_{name}", words, labels, buckets=tuple(buckets), registry=registry)

        def gauge(name: str, words: str, value: Callable[[], float]) -> None:
            client.Gauge(f"mmad_bank_{name}", words, registry=registry).set_function(value)

        self._requests = counter("requests", "Requests by route and status.", "route", "status")
        self._seconds = histogram("request_seconds", "Time from head to answer, by route.", _SECONDS, "route")
        self._sections = histogram("section_seconds", "Time by section of the work.", _SECONDS, "section")
        self._batches = histogram("batch_images", "Images that were computed together.", _IMAGES)
        self._verdicts = counter("verdicts", "Verdicts of images, by model.", "model", "verdict")
        self._models = counter("model_events", "Models loaded, failed to load, and dropped from memory.", "event")
        self._rejected = counter("rejected", "Requests that were turned away, by reason.", "reason")
        gauge("models_resident", "Models in memory.", lambda: resident()[0])
        gauge("models_resident_bytes", "Bytes of the models in memory.", lambda: resident()[1])
        gauge("requests_waiting", "Requests that wait to be computed.", waiting)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()  # type: ignore[attr-defined]
        self._seconds.labels(route).observe(seconds)  # type: ignore[attr-defined]

    def section(self, name: str, seconds: float) -> None:
        """Count the time of a section."""
        self._sections.labels(name).observe(seconds)  # type: ignore[attr-defined]

    def sections(self, seconds: Mapping[str, float]) -> None:
        """Count the times of several sections."""
        for name, one in seconds.items():
            self.section(name, one)

    def batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)  # type: ignore[attr-defined]

    def verdicts(self, model: str, words: Iterable[str]) -> None:
        """Count verdicts."""
        for word in words:
            self._verdicts.labels(model, word).inc()  # type: ignore[attr-defined]

    def model_event(self, event: str) -> None:
        """Count what happened to a model."""
        self._models.labels(event).inc()  # type: ignore[attr-defined]

    def rejected(self, reason: str) -> None:
        """Count a request that was turned away."""
        self._rejected.labels(reason).inc()  # type: ignore[attr-defined]

    def text(self) -> tuple[bytes, str]:
        """Return all of it as Prometheus reads it, and the type of that text."""
        return self._client.generate_latest(self._registry), self._client.CONTENT_TYPE_LATEST
