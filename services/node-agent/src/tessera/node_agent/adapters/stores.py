"""The folders that a node's trust domains have: a store on tmpfs each, and one for the sockets of their runtimes.

RUN/store-<tag>    the store's mount point
RUN/d-<tag>/       runtimes and zygotes of one domain
RUN/bake/          scratch folders of bakers that run as a domain's user
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tessera.clock import Clock
from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import TrustDomain, domain_tag
from tessera.node_agent.adapters.files import NOTES_FOLDER, writable_folder
from tessera.node_agent.config import NodeAgentConfig, StoreConfig
from tessera.node_agent.core.runtimes import domain_folder
from tessera.node_agent.relay import DOMAIN_FOLDER
from tessera.policy.reclaim import registry as reclaim
from tessera.telemetry import get_logger
from tessera.tensorstore.local import LocalTensorStore
from tessera.tensorstore.mount import own_mounts_below, prepare_store_folder, remove_store_folder, remove_unused_mount

BAKE_FOLDER = "bake"
_STORE_FOLDER = re.compile(r"store-[0-9a-f]{6}")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenStore:
    """A domain's store and the folder of its runtimes. `user`: whose its processes are; None: the agent's own."""

    trust_domain: TrustDomain
    store: LocalTensorStore
    runtimes_folder: Path
    user: int | None


class Stores:
    """Opens every store of a node; `close` in the end."""

    def __init__(self, config: NodeAgentConfig, run: Path, clock: Clock, as_users: bool) -> None:
        self._config = config
        self._run = run
        self._clock = clock
        self._as_users = as_users
        self.opened: list[OpenStore] = []
        self._departed: dict[Path, str] = {}

    def open(self) -> None:
        """Those of the settings, one after the other. What was opened before one that cannot be is left to `close`.

        Raises:
            FailedPrecondition: another agent owns a store, memory is too small for it, or several domains would share one tmpfs.
        """
        if self._as_users:
            self._run.chmod(0o711)  # users may pass through, to what is theirs
        for config in self._config.stores:
            self.opened.append(self._open(config))

    def _open(self, config: StoreConfig) -> OpenStore:
        domain = TrustDomain(config.trust_domain)
        user = self._config.user_of(config) if self._as_users else None
        root = self._root(config, domain)
        policy = reclaim.make(self._config.reclaim_policy, self._config.tensor_keep_alive_s)
        store = LocalTensorStore(root, config.budget_bytes, self._clock, self._config.sharing, policy)
        if user is not None:
            os.chown(root, -1, user)
            root.chmod(0o750)
        _log.info("tensor store open", trust_domain=domain, root=str(root), budget_bytes=config.budget_bytes, blobs=len(store.digests()))
        return OpenStore(domain, store, _runtimes_folder(self._run / domain_folder(domain), user), user)

    def _root(self, config: StoreConfig, domain: TrustDomain) -> Path:
        if config.folder is not None:
            return writable_folder(f"folder of store {domain}", config.folder)
        mount_point = self._mount_point(domain)
        prepared = prepare_store_folder(mount_point, config.budget_bytes, may_mount=self._config.may_mount, huge_pages=config.huge_pages)
        if not prepared.own_mount and len(self._config.stores) > 1:
            remove_store_folder(mount_point)
            raise FailedPrecondition(
                f"stores: {len(self._config.stores)} trust domains need a tmpfs of their own each, and this process may not mount one for "
                f"{domain!r}: give every store a `folder` on a tmpfs, let the agent mount (may_mount, CAP_SYS_ADMIN), or keep one store"
            )
        return prepared.path

    def _mount_point(self, domain: TrustDomain) -> Path:
        return self._run / f"store-{domain_tag(domain)}"

    def unmount_departed(self) -> int:
        """Unmounts the stores of trust domains that the settings no longer name, as far as nobody uses them. Returns how many stay: those
        that runtimes of an earlier agent's life map still. Blocks while it looks through /proc."""
        configured = {self._mount_point(TrustDomain(config.trust_domain)).name for config in self._config.stores}
        staying = {}
        for point in own_mounts_below(self._run):
            if point.parent != self._run or not _STORE_FOLDER.fullmatch(point.name) or point.name in configured:
                continue
            try:
                remove_unused_mount(point)
            except FailedPrecondition as error:
                staying[point] = str(error)
                if self._departed.get(point) != staying[point]:
                    _log.warning("the store of a trust domain that is not configured stays", root=str(point), reason=staying[point])
            else:
                _log.info("the store of a trust domain that is not configured was unmounted", root=str(point))
        self._departed = staying
        return len(staying)

    def close(self, *, leave: bool) -> None:
        """Lets go of the stores; unless somebody else is to take over, their folders and the run folder go."""
        for opened in self.opened:
            opened.store.close()
        if leave:
            return
        for config in self._config.stores:
            if config.folder is None:
                remove_store_folder(self._mount_point(TrustDomain(config.trust_domain)))
        self._remove_run_folder()

    def _remove_run_folder(self) -> None:
        """Only what is ours; the folder itself goes when nothing else is in it."""
        for path in (*self._run.glob(f"{DOMAIN_FOLDER}*"), self._run / NOTES_FOLDER, self._run / BAKE_FOLDER):
            shutil.rmtree(path, ignore_errors=True)
        try:
            self._run.rmdir()
        except OSError:
            pass


def _runtimes_folder(folder: Path, user: int | None) -> Path:
    """Made when it is not there; entered by its user (and root) alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(folder, user, user)
    folder.chmod(0o700)
    return folder
