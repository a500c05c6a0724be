// SPDX-License-Identifier: Apache-2.0
// A small echo server: one process, one thread, epoll. What a client sends comes back; when it has ended its half, so does the server.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define SIZE 65536

// What has been received and not yet sent; ended when the client has.
struct conn {
	int fd, from, to, ended;
	char data[SIZE];
};

static int poller;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(struct conn *c, int how)
{
	struct epoll_event ev = {.events = (c->to > c->from ? EPOLLOUT : 0) | (c->to < SIZE && !c->ended ? EPOLLIN : 0), .data.ptr = c};

	if (epoll_ctl(poller, how, c->fd, &ev))
		fail("epoll_ctl");
}

static void end(struct conn *c)
{
	close(c->fd);
	free(c);
}

static void serve(struct conn *c)
{
	if (!c->ended && c->to < SIZE) {
		ssize_t n = recv(c->fd, c->data + c->to, SIZE - c->to, 0);

		if (n == 0)
			c->ended = 1;
		else if (n > 0)
			c->to += n;
		else if (errno != EAGAIN)
			return end(c);
	}
	if (c->to > c->from) {
		ssize_t n = send(c->fd, c->data + c->from, c->to - c->from, MSG_NOSIGNAL);

		if (n > 0)
			c->from += n;
		else if (errno != EAGAIN)
			return end(c);
	}
	if (c->from == c->to) {
		c->from = c->to = 0;
		if (c->ended)
			return end(c);
	}
	watch(c, EPOLL_CTL_MOD);
}

static void welcome(int listener)
{
	int one = 1, fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct conn *c = calloc(1, sizeof(*c));

		if (!c)
			fail("calloc");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		c->fd = fd;
		watch(c, EPOLL_CTL_ADD);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = in6addr_any};
	int listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
	struct epoll_event ev = {.events = EPOLLIN}, events[64];

	if (argc != 2)
		return fprintf(stderr, "usage: echo PORT\n"), 2;
	signal(SIGPIPE, SIG_IGN);
	at.sin6_port = htons(atoi(argv[1]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 4096))
		fail("listen");
	poller = epoll_create1(EPOLL_CLOEXEC);
	if (poller < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, listener, &ev))
		fail("epoll");
	for (;;) {
		int n = epoll_wait(poller, events, 64, -1);

		for (int i = 0; i < n; i++)
			if (events[i].data.ptr)
				serve(events[i].data.ptr);
			else
				welcome(listener);
	}
}
