"""Ceph with its RADOS Gateway, from Debian's packages: a monitor, one OSD and the gateway. It needs root."""

import uuid
from pathlib import Path

from tests.support.needs import needs
from tests.support.processes import free_port
from tests.support.s3.server import S3Server

INSTALL = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v2:127.0.0.1:{mon}
ms_bind_msgr1 = false
ms_bind_port_min = {osd}
ms_bind_port_max = {osd_last}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
auth_allow_insecure_global_id_reclaim = false
keyring = {root}/keyring
run_dir = {root}/run
admin_socket = {root}/run/$name.asok
log_file = {root}/log/$name.log
crash_dir = {root}/log
mon_cluster_log_file = {root}/log/cluster.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[mon]
mon_data = {root}/mon
[osd]
osd_data = {root}/osd
osd_objectstore = bluestore
bluestore_block_size = 21474836480
bluestore_block_create = true
osd_memory_target = 939524096
osd_max_object_name_len = 460
osd_max_object_namespace_len = 64
osd_class_update_on_start = false
[client]
rgw_data = {root}/rgw
rgw_frontends = {frontends}
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
rgw_dns_name =
rgw_run_sync_thread = false
rgw_enable_quota_threads = false
"""


class Ceph(S3Server):
    """Ceph RADOS Gateway. Its `osd` can be killed by itself: then requests hang."""

    name = "Ceph RADOS Gateway"
    front = "rgw"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ["mon"])
        for name in ("run", "log", "mon", "osd", "rgw"):
            (directory / name).mkdir()
        first = free_port()
        self._fsid = uuid.uuid4()
        plain, tls = self.ports["s3"], self.ports["https"]
        frontends = f"beast endpoint=127.0.0.1:{plain} ssl_endpoint=127.0.0.1:{tls}"
        frontends += f" ssl_certificate={self.ca_file} ssl_private_key={self.key_file}"
        values = {"fsid": self._fsid, "mon": self.ports["mon"], "osd": first, "osd_last": first + 16}
        configuration = _CONFIGURATION.format(root=directory, frontends=frontends, **values)
        (directory / "ceph.conf").write_text(configuration)
        self._made = False

    def launch(self) -> None:
        """See `S3Server.launch`."""
        programs = {name: needs(name, INSTALL, root=True) for name in ("ceph-mon", "ceph-osd", "radosgw")}
        conf = ("-c", self.directory / "ceph.conf")
        if not self._made:
            self._make_monitor(conf)
        self.spawn("mon", programs["ceph-mon"], *conf, "-i", "a", "-f")
        if not self._made:
            osd = str(uuid.uuid4())
            self.run("ceph", *conf, "osd", "new", osd)
            self.run("ceph-osd", *conf, "-i", 0, "--mkfs", "--osd-uuid", osd)
        self.spawn("osd", programs["ceph-osd"], *conf, "-i", 0, "-f")
        if not self._made:
            keys = ("--access-key", self.access_key, "--secret", self.secret_key)
            self.run("radosgw-admin", *conf, "user", "create", "--uid", "tester", "--display-name", "tester", *keys)
            self._made = True
        self.spawn("rgw", programs["radosgw"], *conf, "-n", "client.rgw", "-f")

    def _make_monitor(self, conf: tuple[object, ...]) -> None:
        keyring, monmap = self.directory / "keyring", self.directory / "monmap"
        everything = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for client in ("client.admin", "client.rgw"):
            self.run("ceph-authtool", keyring, "--gen-key", "-n", client, *everything)
        profile = ("--cap", "mon", "allow profile osd", "--cap", "mgr", "allow profile osd", "--cap", "osd", "allow *")
        self.run("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", *profile)
        address = f"[v2:127.0.0.1:{self.ports['mon']}]"
        self.run("monmaptool", "--create", "--clobber", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self.run("ceph-mon", *conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
