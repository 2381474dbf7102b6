"""Values that installations need: the chart's profiles, and what differs from them, at dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Values = dict[str, Any]

PROFILES: Final = ("trial-cpu", "single-gpu", "production")
_HUB = {"sampler.model": "org/policy", "judge.model": "org/judge"}
_EXTERNAL = {"postgresql.enabled": False, "database.existingSecret": "ledger"}
VARIATIONS: Final[Mapping[str, tuple[str, Values]]] = {
    **{name: (name, {}) for name in PROFILES},
    "external database": ("trial-cpu", _EXTERNAL),
    "external database, migrated by hand": ("trial-cpu", {**_EXTERNAL, "database.migrate": False}),
    "password of one's own": (
        "trial-cpu",
        {"postgresql.existingSecret": "mine", "postgresql.storageClassName": "fast"},
    ),
    "models of the hub": ("single-gpu", {**_HUB, "huggingFace.tokenSecret": "hub"}),
    "models on the volume": (
        "single-gpu",
        {"sampler.model": "/rlaif/models/policy", "judge.model": "/rlaif/models/judge"},
    ),
    "models on a volume of one's own": (
        "single-gpu",
        {
            "judge.model": "/models/judge",
            "judge.pod": {
                "extraVolumes": [{"name": "models", "nfs": {"server": "nfs", "path": "/models"}}],
                "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
            },
        },
    ),
    "transformers on a GPU": ("single-gpu", {"sampler.engine": "hf", "judge.engine": "hf", "sampler.settings": {}}),
    "four GPUs of another maker": (
        "single-gpu",
        {"judge.gpus": 4, "gpu.resource": "amd.com/gpu", "gpu.tolerations": [], "judge.pod.runtimeClassName": "rocm"},
    ),
    "a judge elsewhere": (
        "trial-cpu",
        {
            "judge": {
                "model": "big-judge",
                "engine": "openai",
                "constitutions": ["harmless-only"],
                "gpus": 0,
                "settings": {
                    "engine": {"openai": {"base_url": "https://models.example/v1", "api_key_env": "JUDGE_KEY"}},
                    "without_logprobs": "sample",
                },
                "pod": {
                    "extraEnv": [{"name": "JUDGE_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "key"}}}]
                },
            }
        },
    ),
    "a constitution of one's own": (
        "trial-cpu",
        {
            "constitutions": {"mine.yaml": "id: mine\nprinciples:\n  - {id: short, text: Be short.}\n"},
            "judge.constitutions": ["playground", "mine.yaml"],
        },
    ),
    "scaled by a metrics adapter": (
        "trial-cpu",
        {f"{name}.autoscaling.kind": "hpa" for name in ("sampler", "judge")},
    ),
    "reward models of every replica": (
        "trial-cpu",
        {
            "reward.replicas": 3,
            "reward.settings": {"reward_models": {"helpful": ["/rlaif/models/helpful"]}, "mix_requests": True},
        },
    ),
    "MinIO": (
        "trial-cpu",
        {
            "artifacts": {
                "root": "s3://models/rlaif",
                "endpoint": "https://minio.storage.svc:9000",
                "region": "main",
                "credentialsSecret": "minio",
            },
            "networkPolicy.storePorts": [443, 9000],
        },
    ),
    "object storage alone": (
        "trial-cpu",
        {"artifacts.root": "gs://models/rlaif", "runs.enabled": False, "loop.enabled": False},
    ),
    "a loop on GPUs": (
        "production",
        {
            "loop": {
                "enabled": True,
                "settings": {"prompts": "/rlaif/prompts.jsonl", "jobs": {"num_nodes": 2, "pod": {"gpus": 8}}},
            }
        },
    ),
    "a trial on one node of several": (
        "trial-cpu",
        {
            "pod.nodeSelector": {"kubernetes.io/hostname": "node-1"},
            "loop.settings.jobs.pod.node_selector": {"kubernetes.io/hostname": "node-1"},
        },
    ),
    "labels every night": (
        "trial-cpu",
        {"loop": {"enabled": True, "schedule": "0 2 * * *", "settings": {"pipeline": "label-only"}}},
    ),
    "callers by name": (
        "production",
        {"networkPolicy.callers": [{"podSelector": {"matchLabels": {"team": "alignment"}}}]},
    ),
    "volumes that are there": (
        "single-gpu",
        {"runs.existingClaim": "shared", "modelCache.existingClaim": "cache", "modelCache.maxBytes": 500_000_000_000},
    ),
    "TLS": ("trial-cpu", {"tls": {"enabled": True, "existingSecret": "tls"}}),
    "tokens": ("trial-cpu", {"tokens": {"existingSecret": "tokens", "clientSecret": "token"}}),
    "no network policies": ("trial-cpu", {"networkPolicy.enabled": False}),
    "nobody monitors": ("trial-cpu", {"networkPolicy.monitoring": []}),
    "monitored": (
        "trial-cpu",
        {
            "monitoring.serviceMonitor": {"enabled": True, "interval": "10s"},
            "monitoring.podMonitor.enabled": True,
            "monitoring.rules.enabled": True,
            "monitoring.dashboards.enabled": True,
        },
    ),
    "a registry of one's own": (
        "trial-cpu",
        {
            "image": {
                "registry": "registry.example:5000/mirror",
                "tag": "0.1.0-internal",
                "pullSecrets": ["registry"],
                "digests": {"engine": f"sha256:{'a' * 64}"},
            },
            "postgresql.image": "registry.example:5000/mirror/postgres:17.6",
        },
    ),
    "placed by hand": (
        "trial-cpu",
        {
            "pod": {
                "annotations": {"team": "alignment"},
                "labels": {"cost-centre": "42"},
                "priorityClassName": "high",
                "nodeSelector": {"pool": "rlaif"},
                "tolerations": [{"key": "pool", "value": "rlaif", "effect": "NoSchedule"}],
                "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/rlaif"},
                "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "extraEnvFrom": [{"secretRef": {"name": "more", "optional": True}}],
                "topologySpreadConstraints": [],
            },
            "sampler.pod": {"nodeSelector": {"gpu": "a100"}, "affinity": {"nodeAffinity": {}}},
        },
    ),
    "every setting": (
        "trial-cpu",
        {
            "sampler.settings": {
                "engine": {"num_threads": 2, "max_cache_tokens": 1_048_576},
                "sync_poll_seconds": 2.5,
                "listen": {"max_message_bytes": 67_108_864},
            },
            "judge.settings": {"reasoning": None, "ledger_batch_milliseconds": 1.5, "queue": {"max_queue_items": 1024}},
            "oversight.settings": {"limits": {"max_payload_bytes": 16_777_216}, "quality": {"window_hours": 24}},
            "logLevel": "DEBUG",
        },
    ),
}
