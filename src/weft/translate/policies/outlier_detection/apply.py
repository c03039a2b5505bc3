"""`trafficPolicy.outlierDetection` -> the cluster's ejection of failing endpoints."""

from __future__ import annotations

from typing import Any

from weft.api.networking import OutlierDetection


def apply(settings: OutlierDetection | None, cluster: Any) -> None:
    """
    Set ejection on *cluster* (a `Cluster`), and whether it sends to unhealthy endpoints in need.

    The panic threshold is always set: Envoy's default of 50 % suits large clusters, not two replicas (Istio's
    reason). Statistical ejection is always off.
    """
    cluster.common_lb_config.healthy_panic_threshold.value = 0
    if settings is None:
        return
    detection = cluster.outlier_detection
    detection.enforcing_success_rate.value = 0
    if settings.consecutive_5xx_errors is not None:
        detection.consecutive_5xx.value = settings.consecutive_5xx_errors
        detection.enforcing_consecutive_5xx.value = 100 if settings.consecutive_5xx_errors else 0
    if settings.consecutive_gateway_errors is not None:
        detection.consecutive_gateway_failure.value = settings.consecutive_gateway_errors
        detection.enforcing_consecutive_gateway_failure.value = 100 if settings.consecutive_gateway_errors else 0
    if settings.interval is not None:
        detection.interval.FromTimedelta(settings.interval)
    if settings.base_ejection_time is not None:
        detection.base_ejection_time.FromTimedelta(settings.base_ejection_time)
    if settings.max_ejection_percent > 0:
        detection.max_ejection_percent.value = settings.max_ejection_percent
    if settings.split_external_local_origin_errors:
        detection.split_external_local_origin_errors = True
        detection.enforcing_local_origin_success_rate.value = 0
        if settings.consecutive_local_origin_failures:
            detection.consecutive_local_origin_failure.value = settings.consecutive_local_origin_failures
            detection.enforcing_consecutive_local_origin_failure.value = 100
    cluster.common_lb_config.healthy_panic_threshold.value = settings.min_health_percent
