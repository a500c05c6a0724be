// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// batch is how many connections are taken at a time, outside the measurement.
const batch = 100

// stock makes n connections and takes them from the entry.
func (r *rig) stock(b *testing.B, l *net.TCPListener, n int, request []byte) ([]*net.TCPConn, []*tcprepair.Snapshot) {
	b.Helper()
	r.path(b, r.entryMAC)
	waiting := make([]peeked, n)
	for i := range waiting {
		waiting[i] = r.peek(b, l, request, false)
	}
	r.path(b, r.serverMAC)
	clients, snapshots := make([]*net.TCPConn, n), make([]*tcprepair.Snapshot, n)
	for i, p := range waiting {
		clients[i], snapshots[i] = p.client, r.take(b, p)
	}
	return clients, snapshots
}

// abandon ends connections without leaving TIME_WAIT.
func abandon(b *testing.B, conns ...*net.TCPConn) {
	b.Helper()
	for _, c := range conns {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}

// spin accepts without sleeping, so that what is measured is not a scheduler's wake-up.
func spin(b *testing.B, fd int) int {
	for {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err == nil {
			return c
		}
		if err != unix.EAGAIN {
			b.Fatal(err)
		}
	}
}

func report(b *testing.B, lat []time.Duration) {
	slices.Sort(lat)
	b.ReportMetric(float64(lat[len(lat)/2].Nanoseconds())/1e3, "us-median")
	b.ReportMetric(float64(lat[len(lat)*99/100].Nanoseconds())/1e3, "us-p99")
}

// BenchmarkInjectAccept is from the call of Inject to the return of accept().
func BenchmarkInjectAccept(b *testing.B) {
	for _, size := range []int{100, 1400, 16 << 10, 60_000} {
		b.Run(itoa(size), func(b *testing.B) {
			r := newRig(b)
			in := r.open(b, Config{})
			entry := r.entryListener(b, at(r.vip4, 80))
			server := r.listen(b, "0.0.0.0:80")
			request := ramp(b, 0, size)
			var lat []time.Duration
			control(b, server, func(fd int) error {
				b.ResetTimer()
				for done := 0; done < b.N; {
					b.StopTimer()
					n := min(batch, b.N-done)
					clients, snapshots := r.stock(b, entry, n, request)
					b.StartTimer()
					for _, s := range snapshots {
						start := time.Now()
						if err := in.Inject(s); err != nil {
							return err
						}
						c := spin(b, fd)
						lat = append(lat, time.Since(start))
						b.StopTimer()
						_ = unix.Close(c)
						b.StartTimer()
					}
					b.StopTimer()
					abandon(b, clients...)
					b.StartTimer()
					done += n
				}
				return nil
			})
			report(b, lat)
		})
	}
}

// BenchmarkInjectBlocked is the same with a server that sleeps in accept(), as servers do.
func BenchmarkInjectBlocked(b *testing.B) {
	r := newRig(b)
	in := r.open(b, Config{})
	entry := r.entryListener(b, at(r.vip4, 80))
	server := r.listen(b, "0.0.0.0:80")
	accepted := make(chan time.Time, 1)
	var fd int
	control(b, server, func(f int) (err error) {
		fd, err = unix.Dup(f)
		return err
	})
	defer unix.Close(fd)
	if err := unix.SetNonblock(fd, false); err != nil {
		b.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		runtime.LockOSThread()
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err != nil {
				return
			}
			accepted <- time.Now()
			_ = unix.Close(c)
		}
	}()
	var lat []time.Duration
	b.ResetTimer()
	for done := 0; done < b.N; {
		b.StopTimer()
		n := min(batch, b.N-done)
		clients, snapshots := r.stock(b, entry, n, ramp(b, 0, 300))
		b.StartTimer()
		for _, s := range snapshots {
			start := time.Now()
			if err := in.Inject(s); err != nil {
				b.Fatal(err)
			}
			lat = append(lat, (<-accepted).Sub(start))
		}
		b.StopTimer()
		abandon(b, clients...)
		b.StartTimer()
		done += n
	}
	b.StopTimer()
	report(b, lat)
	_ = unix.Shutdown(fd, unix.SHUT_RD)
	<-stop
}

// BenchmarkInject is Inject alone, one after the other and from several goroutines.
func BenchmarkInject(b *testing.B) {
	for name, workers := range map[string]int{"one": 1, "four": 4} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			r.sysctl(b, r.server, "net.core.somaxconn", "4096")
			in := r.open(b, Config{})
			entry := r.entryListener(b, at(r.vip4, 80))
			server := r.listen(b, "0.0.0.0:80")
			var spent time.Duration
			b.ResetTimer()
			for done := 0; done < b.N; {
				b.StopTimer()
				n := min(4*batch, b.N-done)
				clients, snapshots := r.stock(b, entry, n, ramp(b, 0, 300))
				work := make(chan *tcprepair.Snapshot, n)
				for _, s := range snapshots {
					work <- s
				}
				close(work)
				failed := make(chan error, workers)
				b.StartTimer()
				start := time.Now()
				for range workers {
					go func() {
						for s := range work {
							if err := in.Inject(s); err != nil {
								failed <- err
								return
							}
						}
						failed <- nil
					}()
				}
				for range workers {
					if err := <-failed; err != nil {
						b.Fatal(err)
					}
				}
				spent += time.Since(start)
				b.StopTimer()
				for range n {
					c, err := server.AcceptTCP()
					if err != nil {
						b.Fatal(err)
					}
					abandon(b, c)
				}
				abandon(b, clients...)
				done += n
				b.StartTimer()
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/spent.Seconds(), "conn/s")
		})
	}
}
