// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestOutbox plays transcripts: what happens, and what is to be sent or was given up.
func TestOutbox(t *testing.T) {
	type step struct{ do, want string }
	for _, tt := range []struct {
		name  string
		steps []step
	}{
		{"connected all the time", []step{
			{"up", "send []"}, {"add 1", "send [1]"}, {"add 2", "send [2]"}, {"answer 1", "true"}, {"answer 1", "false"}, {"answer 2", "true"},
		}},
		{"not connected at first", []step{{"add 1", "send []"}, {"add 2", "send []"}, {"up", "send [1 2]"}, {"answer 2", "true"}}},
		{"what is not answered is sent again", []step{
			{"up", "send []"},
			{"add 1", "send [1]"},
			{"add 2", "send [2]"},
			{"answer 1", "true"},
			{"down", ""},
			{"add 3", "send []"},
			{"up", "send [2 3]"},
			{"answer 3", "true"},
			{"answer 2", "true"},
			{"down", ""},
			{"up", "send []"},
		}},
		{"too many", []step{
			{"add 1", "send []"}, {"add 2", "send []"}, {"add 3", "send []"}, {"add 4", "send [] lost [1]"}, {"up", "send [2 3 4]"}, {"answer 1", "false"},
		}},
		{"too old", []step{
			{"add 1", "send []"}, {"wait 4s", "lost []"}, {"add 2", "send []"}, {"wait 1s", "lost [1]"}, {"up", "send [2]"}, {"wait 4s", "lost [2]"}, {"answer 2", "false"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, now := outbox{keep: 5 * time.Second, max: 3}, time.Unix(1000, 0)
			ids := func(list []report) (ids []uint64) {
				for _, r := range list {
					ids = append(ids, r.id)
				}
				return ids
			}
			var got []step
			for _, s := range tt.steps {
				var id uint64
				var d string
				result := ""
				switch {
				case s.do == "up":
					result = fmt.Sprint("send ", ids(o.connected()))
				case s.do == "down":
					o.disconnected()
				case scan(s.do, "add %d", &id):
					send, lost := o.add(now, report{id: id})
					result = fmt.Sprint("send ", ids(send))
					if len(lost) > 0 {
						result += fmt.Sprint(" lost ", lost)
					}
				case scan(s.do, "answer %d", &id):
					result = fmt.Sprint(o.answered(id))
				case scan(s.do, "wait %s", &d):
					span, err := time.ParseDuration(d)
					if err != nil {
						t.Fatal(err)
					}
					now = now.Add(span)
					result = fmt.Sprint("lost ", o.expire(now))
				default:
					t.Fatalf("step %q", s.do)
				}
				got = append(got, step{s.do, result})
			}
			if diff := cmp.Diff(tt.steps, got, cmp.AllowUnexported(step{})); diff != "" {
				t.Errorf("transcript (-want +got):\n%s", diff)
			}
		})
	}
}

func scan(text, format string, v any) bool {
	n, err := fmt.Sscanf(text, format, v)
	return n == 1 && err == nil
}

func TestRedial(t *testing.T) {
	var got []time.Duration
	for failures := range 12 {
		got = append(got, redial(failures))
	}
	if !slices.IsSorted(got) || got[0] != 10*time.Millisecond || got[len(got)-1] != time.Second {
		t.Errorf("%v", got)
	}
}
