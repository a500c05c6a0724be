// SPDX-License-Identifier: Apache-2.0

package admission

// plain are the policies that SA2C is compared with. They remember nothing.
type plain struct{ config Config }

// Update implements Policy.
func (p *plain) Update(loads Loads) Decision {
	x, cluster := loads.decisive(p.config.Alpha)
	t := Thresholds{T1: p.config.T1, T2: p.config.T2, T3: p.config.T3, C: p.config.C}
	d := Decision{Load: x, Cluster: cluster, Thresholds: t, Next: p.config.Interval}
	switch p.config.Kind {
	case Static:
		if x > t.T2 {
			d.New = 1
		}
	case Request:
		d.New = ratio(x-t.T1, t.T2-t.T1)
		d.Established = d.New
	case LeastConnections503:
		d.Connections = p.config.Connections
	}
	d.State = stateOf(d.New, d.Established)
	return d
}
