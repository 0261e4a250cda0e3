"""The providers `sqlite` and `encrypted-sqlite`: a data directory with a file per namespace."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from strongroom.errors import (
    InvalidNamespace,
    NotSupported,
    StorageError,
    StoreClosed,
)
from strongroom.keys.audit import AuditLine
from strongroom.keys.keystore import NAMESPACE as KEYSTORE
from strongroom.keys.keystore import DataKey, KeyState
from strongroom.keys.master import MasterKey
from strongroom.settings import StorageSettings
from strongroom.storage.provider import NODE_META, StorageProvider, check_batches
from strongroom.storage.records import (
    Batch,
    Clock,
    OnProgress,
    Write,
    check_namespace,
    system_clock,
)
from strongroom.storage.sqlite import tables
from strongroom.storage.sqlite.connections import Connections
from strongroom.storage.sqlite.files import AUDIT, MARK, SEEN, KeystoreSeen, StoreFiles, Watermark
from strongroom.storage.sqlite.open_files import raise_descriptor_limit
from strongroom.storage.sqlite.rotation import STEP_PAGES, RekeyedCopy
from strongroom.storage.sqlite.store import SqliteStore
from strongroom.storage.sqlite.units import Units, complete
from strongroom.threads import Threads, finish

TICK_SECONDS = 1.0
MARK_TICKS = 5
IDLE_TICKS = 5
THREADS = 8

log = logging.getLogger(__name__)


class SqliteProvider(StorageProvider):
    """Keeps each namespace in its own plain SQLite file, `<namespace>.db`."""

    needs_directory: ClassVar[bool] = True
    encrypts: ClassVar[bool] = False

    def __init__(self, settings: StorageSettings, clock: Clock = system_clock) -> None:
        super().__init__(settings, clock)
        self._threads = Threads(THREADS)
        self.files = StoreFiles(settings, clock, self._threads, encrypts=self.encrypts)
        self._stores: dict[str, SqliteStore] = {}
        self._changing = asyncio.Lock()
        self._rotating = asyncio.Lock()
        self._marking = asyncio.Lock()
        self._units = Units()
        self._is_closed = False
        self._ticking: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._refuse_closed()
        if self.files.is_acquired:
            raise StorageError(
                f"The storage in {self.files.directory} was started already.",
                remedy="without start(), which open_provider(settings) has called",
            )
        raise_descriptor_limit()
        try:
            await self.files.acquire()
            left_open = await self._threads.run(self.files.left_open)
            await self._load_seen()
            await self._threads.run(self.files.check_files, self._stores)
            await complete(await self.open(NODE_META), self._open_known)
            await self._note_opening()
        except BaseException:
            self._is_closed = True
            await finish(self._release())
            raise
        where = self.files.directory
        self._ticking = asyncio.create_task(self._tick(), name=f"tick of {where}")
        self._checking = asyncio.create_task(self._check(left_open), name=f"check of {where}")

    # --- the contract -------------------------------------------------------------------------

    async def open(self, namespace: str) -> SqliteStore:
        self._refuse_closed()
        store = self._stores.get(namespace)
        if store is None or store.connections.is_closed:
            async with self._changing:
                store = self._stores.get(namespace)
                if store is None or store.connections.is_closed:
                    store = await self._open(namespace)
        return store

    async def apply_together(self, batches: Sequence[Batch]) -> None:
        if len(batches) < 2:  # noqa: PLR2004 - one transaction does it
            await super().apply_together(batches)
            return
        check_batches(batches)
        stores = [await self.open(batch.namespace) for batch in batches]
        await finish(self._units.store(stores, batches, self._meta))

    async def namespaces(self) -> list[str]:
        self._refuse_closed()
        return sorted(self.files.keystore.entries)

    async def drop(self, namespace: str) -> None:
        namespace = check_namespace(namespace)
        if namespace == NODE_META:
            raise InvalidNamespace(f"{NODE_META} belongs to the node, and cannot be dropped.")
        self._refuse_closed()
        async with self._rotating, self._changing, self._marking:
            if namespace in self.files.keystore.entries:
                await finish(self._drop(namespace))

    async def _drop(self, namespace: str) -> None:
        if store := self._stores.pop(namespace, None):
            await store.close()
        await self.files.drop(namespace)
        await self._forget_watermark(namespace)
        await self._remember_keystore()

    async def close(self) -> None:
        if self.files.is_acquired:
            self._threads.check_caller()
            self._is_closed = True
            await finish(self._close())

    async def _close(self) -> None:
        """Close what is still open: this may be called again after it was cancelled."""
        async with self._rotating, self._changing:
            try:
                await self._mark(
                    [store for store in self._stores.values() if self._unmarked(store)]
                )
                meta = self._stores.get(NODE_META)
                if meta is not None and not meta.connections.is_closed:
                    await self._units.forget(meta)
                    writer = await meta.connections.open()
                    await self.files.keystore.note_closing(writer.revision)
            finally:
                await self._release()

    # --- for the operator ---------------------------------------------------------------------

    async def change_master(self, master: MasterKey) -> None:
        """Encrypt the keystore under another master key. The data stays as it is."""
        self._refuse_closed()
        self._require_keys()
        await self.files.keystore.change_master(master, self.clock())
        await self._remember_keystore()

    async def rotate(
        self, namespaces: Sequence[str] | None = None, on_progress: OnProgress | None = None
    ) -> list[str]:
        """Give namespaces new data keys, while they are in use. Returns their names.

        Args:
            namespaces: None for those that an interrupted rotation left, or else all.
            on_progress: Called with a namespace, how many of its pages are copied, and how many
                there are.
        """
        self._refuse_closed()
        self._require_keys()
        async with self._rotating:
            begun = await self.files.keystore.begin_rotation(namespaces, self.clock())
            await self._remember_keystore()
            for namespace in begun:
                await self._rotate(namespace, on_progress or (lambda *_: None))
                await self.files.keystore.finish_rotation(namespace, self.clock())
                await self._remember_keystore()
        return begun

    async def note(self, event: str, namespace: str | None = None, detail: str = "") -> None:
        """Add a line to the audit log."""
        self._refuse_closed()
        await self.files.keystore.note(event, self.clock(), namespace, detail)
        await self._remember_keystore()

    async def audit(self) -> list[AuditLine]:
        """The lines of the audit log, oldest first."""
        page = await self._meta.scan(AUDIT, limit=None, max_bytes=None)
        return [msgspec.json.decode(record.value, type=AuditLine) for record in page.records]

    async def verify_audit(self) -> int:
        """Compare the audit log with its chain. Returns the number of lines.

        Raises:
            AuditBroken: A line is missing, or was changed or cut off.
        """
        chain = self.files.keystore.chain.copy()
        return chain.verify(await self.audit(), growing=True)

    # --- namespaces ---------------------------------------------------------------------------

    @property
    def _meta(self) -> SqliteStore:
        meta = self._stores.get(NODE_META)
        if meta is None:
            self._refuse_closed()
            raise self.files.not_started()
        return meta

    def _refuse_closed(self) -> None:
        self._threads.check_caller()
        if self._is_closed:
            raise self.files.closed()

    def _require_keys(self) -> None:
        if not self.encrypts:
            raise NotSupported(
                f"The profile {self.settings.profile} encrypts nothing, so there are no keys."
            )

    async def _open(self, namespace: str) -> SqliteStore:
        entry = self.files.keystore.entries.get(namespace)
        if entry is None:
            namespace = check_namespace(namespace)
            check_namespace(namespace, self.files.keystore.named_like(namespace))
            if namespace.lower() == KEYSTORE:
                raise InvalidNamespace(f"{namespace} is the name of the keystore.")
            if namespace in self.files.watermarks:  # a kill interrupted its drop
                await self._forget_watermark(namespace)
        if entry is None or entry.state is KeyState.NEW:
            await finish(self.files.create(namespace))
            if namespace != NODE_META:
                await self._remember_keystore()
        store = SqliteStore(self.files, namespace, self._threads)
        try:
            await store.connections.open()
        except BaseException:
            await store.close()
            raise
        self._stores[namespace] = store
        return store

    async def _open_known(self, namespace: str) -> SqliteStore | None:
        return await self.open(namespace) if namespace in self.files.keystore.entries else None

    async def _rotate(self, namespace: str, on_progress: OnProgress) -> None:
        """Replace a namespace's file by a copy under its next key."""
        connections = (await self.open(namespace)).connections
        key = self.files.keystore.entries[namespace].next_key
        assert key is not None
        head = await connections.run_on_writer(tables.head)
        if head.file_id == key.file_id:
            return  # the copy is there already; only the keystore could not be saved
        connections.calls += 1  # opened again meanwhile, it would be another connection
        try:
            await self._copy(connections, key, on_progress)
        finally:
            connections.calls -= 1

    async def _copy(self, connections: Connections, key: DataKey, on_progress: OnProgress) -> None:
        namespace = connections.namespace
        copy = await self._threads.open(
            lambda: RekeyedCopy(connections.path, namespace, key), RekeyedCopy.discard
        )
        try:
            done, pages = await connections.run_on_writer(copy.step)
            while pages - done > STEP_PAGES:
                done, pages = await connections.run_on_writer(copy.step)
                on_progress(namespace, done, pages)
                self._refuse_closed()
            await self._threads.run(copy.sync)
            await connections.replace_file(copy)
            on_progress(namespace, pages, pages)
        finally:
            await finish(self._discard(connections, copy))

    async def _discard(self, connections: Connections, copy: RekeyedCopy) -> None:
        try:
            await connections.run_on_writer(copy.discard)
        except StorageError:  # the file is closed or cannot be opened, so nobody uses the copy
            await self._threads.run(copy.discard)
        await self._threads.run(copy.free)

    # --- what NODE_META remembers -------------------------------------------------------------

    async def _load_seen(self) -> None:
        """Read what NODE_META remembers of the files, and compare the keystore with it."""
        entry = self.files.keystore.entries.get(NODE_META)
        if entry is None or entry.state is KeyState.NEW:
            return
        meta = await self.open(NODE_META)
        seen = await meta.read([SEEN])
        watermarks = await meta.scan(MARK, limit=None, max_bytes=None)
        revision = (await meta.connections.open()).revision
        self.files.load_seen([record for record in seen if record] + watermarks.records, revision)

    async def _note_opening(self) -> None:
        page = await self._meta.scan(AUDIT, limit=1, reverse=True)
        newest = [msgspec.json.decode(record.value, type=AuditLine) for record in page.records]
        meta = await self._meta.connections.open()
        await self.files.keystore.note_opening(
            newest[0] if newest else None, meta.revision, self.clock()
        )
        await self._remember_keystore()

    async def _remember_keystore(self) -> None:
        """Write to NODE_META the keystore's generation, and the audit lines that wait in it."""
        keystore = self.files.keystore
        seen = KeystoreSeen(keystore.generation)
        lines = keystore.chain.waiting
        writes = [Write(f"{AUDIT}{line.number:010}", msgspec.json.encode(line)) for line in lines]
        if seen != self.files.seen:
            writes.append(Write(SEEN, msgspec.json.encode(seen)))
        if writes:
            await self._meta.apply(writes)
            self.files.seen = seen
            keystore.chain.forget_stored(lines[-1].number if lines else 0)

    async def _mark(self, stores: list[SqliteStore]) -> None:
        """Write watermarks of stores, to their files first and then to NODE_META."""
        if not stores:
            return
        async with self._marking:  # a file keeps only its last two stamps
            new = {}
            for store in stores:
                stamp = secrets.token_bytes(8)
                known = self.files.watermarks.get(store.namespace, Watermark()).stamp
                try:
                    new[store.namespace] = Watermark(await store.mark(stamp, known), stamp)
                except StorageError as error:  # of this store alone; the others get theirs
                    log.warning("%s", error)
            await self._meta.apply(
                [Write(f"{MARK}{name}", msgspec.json.encode(mark)) for name, mark in new.items()]
            )
            self.files.watermarks.update(new)

    async def _forget_watermark(self, namespace: str) -> None:
        self.files.watermarks.pop(namespace, None)
        await self._meta.apply([Write(f"{MARK}{namespace}", None)])

    def _unmarked(self, store: SqliteStore) -> bool:
        ended = store.connections.is_closed or store.connections.damage is not None
        return not (ended or store.is_marked or store.namespace == NODE_META)

    # --- in the background --------------------------------------------------------------------

    async def _tick(self) -> None:
        """Every second: delete expired records, write watermarks, close idle files."""
        idle: dict[str, int] = {}
        for number in itertools.count(1):
            await asyncio.sleep(TICK_SECONDS)
            for namespace, store in list(self._stores.items()):
                if store.connections.writer is None and store.is_marked:
                    continue  # nothing to do, for most of thousands
                try:
                    await store.sweep(self.clock())
                    connections = store.connections
                    idle[namespace] = 0 if connections.was_used else idle.get(namespace, 0) + 1
                    connections.was_used = False
                    if number % MARK_TICKS == 0 and self._unmarked(store):
                        await self._mark([store])
                    if idle[namespace] >= IDLE_TICKS and connections.writer is not None:
                        await connections.close_if_idle()
                except StorageError as error:
                    log.warning("%s", error)
                except Exception:
                    log.exception("the background work on the store %r failed", namespace)

    async def _check(self, left_open: list[str]) -> None:
        """Read all of the stores that a killed process had in use."""
        for namespace in left_open:
            try:
                await (await self.open(namespace)).examine()
            except StoreClosed:
                pass
            except StorageError as error:
                log.warning("%s could not be checked: %s", namespace, error)
            except Exception:
                log.exception("the check of the store %r failed", namespace)

    async def _release(self) -> None:
        """Close all files, NODE_META last, and give the directory back."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        for namespace in sorted(self._stores, key=NODE_META.__eq__):
            await self._stores[namespace].close()
            del self._stores[namespace]
        if self._checking is not None:
            await asyncio.wait([self._checking])  # it has ended with the file that it was reading
        self._threads.close()
        self.files.release()


class EncryptedSqliteProvider(SqliteProvider):
    """Keeps each namespace in its own encrypted file, `<namespace>_encrypted_value.db`."""

    encrypts: ClassVar[bool] = True
