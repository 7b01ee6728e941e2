"""A server's counters, as what it did between two readings of them."""

from __future__ import annotations

from tritonclient.grpc import service_pb2

from optimizer.measurement.level import BatchPoint, ServerSplit


def server_split(
    before: service_pb2.ModelStatistics, after: service_pb2.ModelStatistics
) -> ServerSplit:
    """Return the server's counters between two readings, per request and per batch size."""
    requests = after.inference_stats.success.count - before.inference_stats.success.count

    def counted(part: str) -> int:
        earlier, later = getattr(before.inference_stats, part), getattr(after.inference_stats, part)
        return int(later.count - earlier.count)

    def mean_ms(part: str) -> float:
        nanoseconds = (
            getattr(after.inference_stats, part).ns - getattr(before.inference_stats, part).ns
        )
        return float(nanoseconds / 1e6 / max(requests, 1))

    earlier = {b.batch_size: b.compute_infer for b in before.batch_stats}
    points = []
    for batch in after.batch_stats:
        previous = earlier.get(batch.batch_size)
        count = batch.compute_infer.count - (previous.count if previous is not None else 0)
        ns = batch.compute_infer.ns - (previous.ns if previous is not None else 0)
        if count > 0:
            points.append(BatchPoint(int(batch.batch_size), int(count), ns / 1e6 / count))
    return ServerSplit(
        model=after.name,
        requests=int(requests),
        queue_ms=mean_ms("queue"),
        compute_input_ms=mean_ms("compute_input"),
        compute_infer_ms=mean_ms("compute_infer"),
        compute_output_ms=mean_ms("compute_output"),
        batches=tuple(sorted(points, key=lambda point: point.batch_size)),
        cache_hits=counted("cache_hit"),
        cache_misses=counted("cache_miss"),
        cache_ms=mean_ms("cache_hit") + mean_ms("cache_miss"),
        request_ms=mean_ms("success"),
    )
