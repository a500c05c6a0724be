// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"io"
	"testing"
	"time"
)

// TestPausesAreInvisible: however a pause and a call meet, the call never shows it. Calls are small and frequent here, so
// that pauses fall between any two of their steps.
func TestPausesAreInvisible(t *testing.T) {
	const piece = 100
	ln := listen(t, socketPath(t), Config{})
	client, server := connect(t, ln)
	done := make(chan error, 3)
	stop := make(chan struct{})
	go func() { // What the server writes comes back to it.
		_, err := io.Copy(client, client)
		done <- errors.Join(err, client.CloseWrite())
	}()
	go func() {
		var err error
		for offset := uint64(0); err == nil; offset += piece {
			select {
			case <-stop:
				done <- server.CloseWrite()
				return
			default:
				_, err = server.Write(ramp(offset, piece))
			}
		}
		done <- err
	}()
	go func() {
		var err error
		for offset := uint64(0); err == nil; offset += piece {
			err = checkRamp(server, offset, piece)
		}
		if server.BytesRead() == server.BytesWritten() {
			err = nil // The end, after all that was written.
		}
		done <- err
	}()
	ended := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end) && ended == 0; {
		if err := server.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		server.resume()
		select {
		case err := <-done:
			t.Errorf("a call ended: %v", err)
			ended++
		default:
		}
	}
	close(stop)
	for ; ended < 3; ended++ {
		if err := await(t, "end", done); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d pauses, %d bytes", server.pauses.Load(), server.BytesRead())
}
