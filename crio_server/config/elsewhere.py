"""Options that CRI-O has and this runtime does not act on.

They are accepted, so that a node's existing files and unit keep working, each with one warning that names it. The
list is from CRI-O's pkg/config and internal/criocli of 2026, plus keys of older releases (1.0 and later) that files
still have.
"""

from collections.abc import Mapping

from crio_core.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A key or flag known to CRI-O only.

    Args:
        table: TOML table; empty for what is only a flag.
        key: TOML key; empty for what is only a flag.
        flag: Command-line spelling, or empty.
        takes_value: Whether the flag is followed by a value.
    """

    table: str
    key: str
    flag: str
    takes_value: bool


_SWITCHES = {
    "crio": "file_locking internal_repair",
    "crio.runtime": (
        "no_pivot log_to_journald add_inheritable_capabilities device_ownership_from_security_context blockio_reload "
        "enable_criu_support enable_pod_events hostnetwork_disable_selinux disable_hostport_mapping "
        "manage_ns_lifecycle manage_network_ns_lifecycle enable_shared_pid_namespace"
    ),
    "crio.image": "auto_reload_registries oci_artifact_mount_support",
    "crio.tracing": "enable_tracing",
    "crio.nri": "enable_nri nri_disable_connections",
}
_VALUES = {
    "crio": "storage_driver storage_option imagestore version_file_persist file_locking_path clean_shutdown_file",
    "crio.api": ("host_ip grpc_max_send_msg_size grpc_max_recv_msg_size"),
    "crio.runtime": (
        "hooks_dir hooks_dir_path default_mounts default_mounts_file allowed_devices "
        "decryption_keys_path privileged_seccomp_profile seccomp_baseline_profile blockio_config_file "
        "irqbalance_config_file irqbalance_config_restore_file rdt_config_file bind_mount_prefix uid_mappings "
        "gid_mappings minimum_mappable_uid minimum_mappable_gid log_filter pinns_path workloads "
        "separate_pull_cgroup infra_ctr_cpuset shared_cpuset "
        "absent_mount_sources_to_reject timezone inject_gomaxprocs ctr_stop_timeout"
    ),
    "crio.image": (
        "default_transport namespaced_auth_dir big_files_temporary_dir pause_image_auth_file short_name_mode"
    ),
    "crio.metrics": "metrics_socket metrics_cert metrics_key metrics_collectors",
    "crio.tracing": "tracing_endpoint tracing_sampling_rate_per_million",
    "crio.stats": "stats_collection_period collection_period included_pod_metrics",
    "crio.nri": (
        "nri_listen nri_plugin_dir nri_plugin_config_dir nri_plugin_registration_timeout nri_plugin_request_timeout "
        "plugin_roles default_validator"
    ),
}
_FLAG_SPELLINGS = {
    "storage_driver": "--storage-driver -s",
    "storage_option": "--storage-opt",
    "log_to_journald": "--log-journald",
    "timezone": "--timezone --tz",
}
_ONLY_FLAGS_SWITCHES = "profile enable_profile_unix_socket"
_ONLY_FLAGS_VALUES = "profile_cpu profile_mem profile_port"
_HANDLER_KEYS = (
    "runtime_config_path monitor_exec_cgroup platform_runtime_paths runtime_pull_image container_min_memory "
    "default_annotations stream_websockets exec_cpu_affinity seccomp_profile container_create_timeout"
)


def _missing(table: str, words: str, takes_value: bool) -> tuple[Missing, ...]:
    return tuple(
        Missing(
            table=table,
            key=word if table else "",
            flag=_FLAG_SPELLINGS.get(word, "--" + word.replace("_", "-")),
            takes_value=takes_value,
        )
        for word in words.split()
    )


MISSING: tuple[Missing, ...] = (
    *(row for table, words in _SWITCHES.items() for row in _missing(table, words, takes_value=False)),
    *(row for table, words in _VALUES.items() for row in _missing(table, words, takes_value=True)),
    *_missing("", _ONLY_FLAGS_SWITCHES, takes_value=False),
    *_missing("", _ONLY_FLAGS_VALUES, takes_value=True),
)
"""Every one of them."""
MISSING_KEYS: Mapping[tuple[str, str], Missing] = {(row.table, row.key): row for row in MISSING if row.table}
"""By table and key."""
MISSING_HANDLER_KEYS = frozenset(_HANDLER_KEYS.split())
"""Keys of a runtime handler's table."""
