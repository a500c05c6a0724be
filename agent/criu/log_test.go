// SPDX-License-Identifier: Apache-2.0

package criu

import "testing"

func TestLogReason(t *testing.T) {
	for name, test := range map[string]struct{ log, want string }{
		"empty":   {"", ""},
		"no word": {"(00.1) Dumping\nWarn  (criu/x.c:1): something\n", ""},
		"first errors": {
			"(00.01) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n" +
				"(00.02) Error (criu/sk-inet.c:10): inet: Can't bind inet socket (id 25): Address already in use\n" +
				"(00.03) Error (criu/cr-restore.c:1): Restoring FAILED.\nError (a:1): b\nError (a:1): c\n",
			"inet: Can't bind inet socket (id 25): Address already in use; Restoring FAILED.; b",
		},
		"no place": {"Error (oops", "oops"},
	} {
		if got := logReason(test.log); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}
