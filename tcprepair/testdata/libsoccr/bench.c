// SPDX-License-Identifier: Apache-2.0
//
// Saves the connection of descriptor 3 and restores it again, as often as the first argument says, with CRIU's libsoccr, and prints in
// nanoseconds how long each half took, and how many bytes were queued. Locking is left out, as libsoccr leaves it to its caller.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "soccr.h"

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	int fd = 3;
	long n = argc > 1 ? atol(argv[1]) : 1;

	for (long i = 0; i < n; i++) {
		struct libsoccr_sk_data data = {};
		union libsoccr_addr *from = calloc(1, sizeof(*from)), *to = calloc(1, sizeof(*to));
		socklen_t from_size = sizeof(*from), to_size = sizeof(*to);
		struct libsoccr_sk *sk;
		char *in = NULL, *out = NULL;
		long long start, saved, begun;

		start = now();
		sk = libsoccr_pause(fd);
		if (!sk)
			die("pause");
		if (libsoccr_save(sk, &data, sizeof(data)) < 0)
			die("save");
		if (data.inq_len)
			in = libsoccr_get_queue_bytes(sk, TCP_RECV_QUEUE, SOCCR_MEM_EXCL);
		if (data.outq_len)
			out = libsoccr_get_queue_bytes(sk, TCP_SEND_QUEUE, SOCCR_MEM_EXCL);
		saved = now();
		if (getsockname(fd, &from->sa, &from_size) || getpeername(fd, &to->sa, &to_size))
			die("addresses");
		libsoccr_release(sk);
		close(fd);
		fd = socket(from->sa.sa_family, SOCK_STREAM, IPPROTO_TCP);
		if (fd < 0)
			die("socket");
		begun = now();
		sk = libsoccr_pause(fd);
		if (!sk)
			die("pause the new socket");
		if (data.inq_len)
			libsoccr_set_queue_bytes(sk, TCP_RECV_QUEUE, in, SOCCR_MEM_EXCL);
		if (data.outq_len)
			libsoccr_set_queue_bytes(sk, TCP_SEND_QUEUE, out, SOCCR_MEM_EXCL);
		libsoccr_set_addr(sk, 1, from, SOCCR_MEM_EXCL);
		libsoccr_set_addr(sk, 0, to, SOCCR_MEM_EXCL);
		if (libsoccr_restore(sk, &data, sizeof(data)) < 0)
			die("restore");
		libsoccr_resume(sk);
		printf("%lld %lld %u\n", saved - start, now() - begun, data.inq_len + data.outq_len);
	}
	return 0;
}
