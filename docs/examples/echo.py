#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A line echo server whose connections can move: it numbers the lines of each, and the number travels.

It speaks docs/application-protocol.md with the standard library alone, on one thread: a connection that is exported is
simply not polled. Usage: echo.py --listen 0.0.0.0:7000 --service echo [--agent /run/rehome/agent.sock]
"""

import argparse
import array
import os
import selectors
import socket
import struct
import time

HELLO, PING, PONG, REFUSE, CHUNK = 1, 2, 3, 4, 5
REGISTER, REGISTERED, LIST, FLOWS, EXPORT, EXPORTED, RESUME, MIGRATED = 64, 65, 66, 67, 68, 69, 70, 71
IMPORT, IMPORTED, ACTIVATE, WITHDRAW, RECOVER, PREPARE, PREPARED = 72, 73, 74, 75, 76, 77, 78
CARRIES = (EXPORTED, IMPORT, RECOVER)  # kinds that a descriptor accompanies
CODE_NO_SERVICE, CODE_NO_FLOW, CODE_NOT_NOW, CODE_FAILED = 1, 5, 6, 10
BLOB_STATE = 1
MAX_FRAME, MAX_STATE, CHUNK_SIZE = 1 << 20, 64 << 20, 256 << 10
RECOVER_TIMEOUT = 30.0  # seconds that a connection waits for the next agent


class Malformed(Exception):
    """The agent sent what it must not: the link is closed and opened again."""


def integer(n):
    return n.to_bytes((n.bit_length() + 7) // 8, "big")


def frame(kind, ident, **fields):
    """Encodes a frame; its fields are t1=..., t2=..., after their tags. Zero values are left out."""
    body = bytearray(struct.pack(">BQ", kind, ident))
    for name, value in fields.items():
        value = integer(value) if isinstance(value, int) else value.encode() if isinstance(value, str) else bytes(value)
        if value:
            body.append(int(name[1:]))
            size = len(value)
            while size >= 0x80:
                body.append(size & 0x7F | 0x80)
                size >>= 7
            body.append(size)
            body += value
    return struct.pack(">I", len(body)) + body


def fields_of(body):
    """Decodes a frame's fields into a dictionary of bytes by tag."""
    fields, at = {}, 0
    while at < len(body):
        tag, size, shift = body[at], 0, 0
        at += 1
        while True:
            if at >= len(body) or shift > 28:
                raise Malformed("size is cut off")
            size |= (body[at] & 0x7F) << shift
            shift += 7
            at += 1
            if body[at - 1] < 0x80:
                break
        if at + size > len(body) or tag & 0x7F in fields:
            raise Malformed(f"field {tag} is cut off, or stands twice")
        if tag & 0x80 and tag & 0x7F > 6:
            raise Malformed(f"field {tag} is critical and unknown")
        fields[tag & 0x7F] = bytes(body[at : at + size])
        at += size
    return fields


def address(name):
    host = socket.inet_pton(socket.AF_INET6 if ":" in name[0] else socket.AF_INET, name[0].split("%")[0])
    if host[:12] == b"\0" * 10 + b"\xff\xff":  # IPv4 on an IPv6 socket is an IPv4 flow
        host = host[12:]
    return host + struct.pack(">H", name[1])


class Connection:
    """One client. Its State: lines answered, the line begun, and the answers not yet written."""

    def __init__(self, sock, epoch=1, state=b""):
        self.sock, self.epoch, self.since = sock, epoch, time.monotonic()
        self.flow = address(sock.getsockname()) + address(sock.getpeername())
        self.lines, self.unread, self.unsent, self.open = 0, b"", b"", True
        if state:
            self.lines, self.open, size = struct.unpack_from(">Q?I", state)
            self.unread, self.unsent = state[13 : 13 + size], state[13 + size :]

    def state(self):
        return struct.pack(">Q?I", self.lines, self.open, len(self.unread)) + self.unread + self.unsent

    def work(self):
        """Reads and answers what is there. False: the connection is over."""
        try:
            if self.open and len(self.unsent) < 1 << 20:
                data = self.sock.recv(65536)
                self.open = bool(data)
                *lines, self.unread = (self.unread + data).split(b"\n")
                for line in lines:
                    self.lines += 1
                    self.unsent += b"%d %s\n" % (self.lines, line)
        except BlockingIOError:
            pass
        try:
            if self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        return self.open or bool(self.unsent)

    def wants(self):
        reading = selectors.EVENT_READ if self.open and len(self.unsent) < 1 << 20 else 0
        return reading | (selectors.EVENT_WRITE if self.unsent else 0)


class Move:
    """A connection given to the agent, or to come from it: only the agent's answer ends this, or the deadline."""

    def __init__(self, conn, target, peer=b"", late=b""):
        self.conn, self.target, self.peer, self.late = conn, target, peer, late
        self.deadline = time.monotonic() + RECOVER_TIMEOUT


class Server:
    def __init__(self, listen, service, agent):
        host, port = listen.rsplit(":", 1)
        self.listener = socket.create_server((host, int(port)))
        self.listener.setblocking(False)
        self.service, self.agent, self.link, self.retry = service, agent, None, 0.0
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.conns, self.moves = {}, {}  # by flow, by frame id

    def run(self):
        print("listening", self.listener.getsockname()[1], flush=True)
        while True:
            if self.link is None and time.monotonic() >= self.retry:
                self.connect()
            for key, _ in self.selector.select(0.1):
                key.data()
            for ident, move in list(self.moves.items()):
                if time.monotonic() > move.deadline:  # Nobody knows any more who owns it: never go on with it.
                    self.moves.pop(ident).conn.sock.close()

    def accept(self):
        try:
            sock, _ = self.listener.accept()
            sock.setblocking(False)
            self.serve(Connection(sock))
        except OSError:
            return  # It has gone again already.

    def serve(self, conn):
        self.conns[conn.flow] = conn
        self.selector.register(conn.sock, selectors.EVENT_READ, lambda: self.work(conn))
        self.work(conn)

    def work(self, conn):
        if self.conns.get(conn.flow) is not conn:
            return  # It was exported after the selector had seen it ready.
        try:
            alive = conn.work()
        except OSError:
            alive = False
        if alive:
            self.selector.modify(conn.sock, conn.wants(), lambda: self.work(conn))
        else:
            self.stop(conn)
            conn.sock.close()

    def stop(self, conn):
        self.selector.unregister(conn.sock)
        if self.conns.get(conn.flow) is conn:
            del self.conns[conn.flow]

    # The link to the agent.

    def connect(self):
        self.retry = time.monotonic() + 0.5
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.settimeout(5)
            link.connect(self.agent)
        except OSError:
            return link.close()
        self.link, self.received, self.fds, self.chunks = link, bytearray(), [], {}
        self.selector.register(link, selectors.EVENT_READ, self.receive)
        try:
            self.send(HELLO, 0, t1=1, t2=1, t3="echo.py")
            self.send(REGISTER, 1, t1=self.service, t2="%s:%d" % self.listener.getsockname()[:2], t3=1)
        except OSError:
            self.disconnect()

    def disconnect(self):
        self.selector.unregister(self.link)
        self.link.close()
        for fd in self.fds:
            os.close(fd)
        self.link = None
        for move in self.moves.values():
            move.deadline = time.monotonic() + RECOVER_TIMEOUT

    def send(self, kind, ident, fd=None, **fields):
        data = frame(kind, ident, **fields)
        rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        sent = self.link.sendmsg([data], rights)
        self.link.sendall(data[sent:])

    def receive(self):
        try:
            data, control, flags, _ = self.link.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds = array.array("i")
                    fds.frombytes(value[: len(value) - len(value) % fds.itemsize])
                    self.fds += fds
            if not data or flags & socket.MSG_CTRUNC:
                return self.disconnect()
            self.received += data
            while len(self.received) >= 4:
                size = struct.unpack_from(">I", self.received)[0]
                if not 9 <= size <= MAX_FRAME:
                    raise Malformed(f"frame of {size} bytes")
                if len(self.received) < 4 + size:
                    break
                body = bytes(self.received[4 : 4 + size])
                del self.received[: 4 + size]
                kind, ident = struct.unpack_from(">BQ", body)
                if kind in CARRIES and not self.fds:
                    raise Malformed("descriptor is missing")
                self.handle(kind, ident, fields_of(body[9:]), self.fds.pop(0) if kind in CARRIES else None)
        except (OSError, Malformed) as error:
            print("link to the agent:", error, flush=True)
            if self.link is not None:
                self.disconnect()

    def handle(self, kind, ident, f, fd):
        if kind == HELLO and int.from_bytes(f.get(1, b""), "big") > 1:
            raise Malformed("the agent does not speak version 1 any more")
        elif kind == REGISTERED:
            for known, move in self.moves.items():  # left behind by the former agent
                epoch = move.conn.epoch - move.target
                self.send(RECOVER, known, move.conn.sock.fileno(), t1=move.conn.flow, t2=self.service, t3=epoch,
                          t4=int(move.target), t5=move.peer, t6=move.late)
        elif kind == PING:
            self.send(PONG, ident)
        elif kind == LIST:
            self.list(ident, f.get(1))
        elif kind == PREPARE:
            self.send(PREPARED, ident)  # Nothing to send ahead.
        elif kind == CHUNK:
            parts = self.chunks.setdefault(ident, bytearray())
            if f.get(1) == b"\x01":
                parts += f.get(2, b"")
            if sum(map(len, self.chunks.values())) > MAX_STATE:
                raise Malformed("too much State")
        elif kind == EXPORT:
            self.export(ident, f)
        elif kind == IMPORT:
            self.take(ident, f, fd)
        elif kind in (RESUME, MIGRATED, ACTIVATE, WITHDRAW):
            self.chunks.pop(ident, None)
            move = self.moves.get(ident)
            if move is None or move.target != (kind in (ACTIVATE, WITHDRAW)):
                return
            del self.moves[ident]
            if kind in (RESUME, ACTIVATE):
                move.conn.sock.setblocking(False)
                self.serve(move.conn)
            else:
                move.conn.sock.close()
        elif kind == REFUSE and ident == 1:
            raise Malformed("the agent refuses the service: " + f.get(2, b"").decode())
        elif kind in (EXPORTED, IMPORTED, RECOVER, REGISTER, FLOWS, PREPARED) or kind < HELLO or kind > PREPARED:
            raise Malformed(f"unexpected frame of kind {kind}")

    def list(self, ident, only):
        conns = [c for c in self.conns.values() if only in (None, c.flow)]
        for at in range(0, len(conns) + 1, 1000):
            flows = b""
            for c in conns[at : at + 1000]:
                age = int((time.monotonic() - c.since) * 1e6)
                entry = frame(0, 0, t1=c.flow, t2=self.service, t3=c.epoch, t4=age, t5=1)[13:]
                flows += struct.pack(">I", len(entry)) + entry
            self.send(FLOWS, ident, t1=flows, t2=int(at + 1000 > len(conns)))

    def export(self, ident, f):
        conn = self.conns.get(f.get(1))
        if conn is None:
            return self.send(REFUSE, ident, t1=CODE_NO_FLOW, t2="no such connection")
        self.stop(conn)
        self.moves[ident] = Move(conn, False, f.get(2, b""))
        state = conn.state()
        while len(state) > CHUNK_SIZE:
            self.send(CHUNK, ident, t1=BLOB_STATE, t2=state[:CHUNK_SIZE])
            state = state[CHUNK_SIZE:]
        self.send(EXPORTED, ident, conn.sock.fileno(), t1=state, t2=conn.epoch, t3=self.service)

    def take(self, ident, f, fd):
        state = bytes(self.chunks.pop(ident, b"")) + f.get(4, b"")
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return self.send(REFUSE, ident, t1=CODE_FAILED, t2="no socket")
        try:
            conn = Connection(sock, int.from_bytes(f.get(2, b""), "big"), state)
            if f.get(3, b"").decode() != self.service or conn.flow != f.get(1):
                raise ValueError("another service's, or another flow's socket")
        except (OSError, ValueError, struct.error) as error:
            sock.close()
            return self.send(REFUSE, ident, t1=CODE_FAILED, t2=str(error))
        self.moves[ident] = Move(conn, True, late=f.get(6, b""))
        self.send(IMPORTED, ident)


def main():
    parser = argparse.ArgumentParser(description="line echo server whose connections can move")
    parser.add_argument("--listen", default="0.0.0.0:7000")
    parser.add_argument("--service", default="echo")
    parser.add_argument("--agent", default=os.environ.get("REHOME_AGENT_SOCKET", "/run/rehome/agent.sock"))
    options = parser.parse_args()
    Server(options.listen, options.service, options.agent).run()


if __name__ == "__main__":
    main()
