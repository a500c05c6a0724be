// SPDX-License-Identifier: Apache-2.0

package migration

// app is an application built with package handoff: it exports and imports, and tells a new agent what the old one left.
type app struct {
	alive, linked bool
	phase         appPhase
	id            uint8
	epoch         uint32
	importer      bool // what it waits for is an import
	orphan        bool // the agent that asked for the import is gone
}

type appPhase uint8

const (
	appIdle appPhase = iota
	appServing
	appExporting
	appExported
	appImporting
	appImported
)

func (p appPhase) String() string {
	return [...]string{"idle", "serving", "exporting", "exported", "importing", "imported"}[p]
}

func (w *world) toApp(h node, f frame) {
	x := &w.hosts[h]
	w.note("%v: agent -> app: %v", h, f)
	if x.appLinked && x.app.alive {
		x.toApp = push(x.toApp, f)
	}
}

func (w *world) fromApp(h node, f frame) {
	x := &w.hosts[h]
	w.note("%v: app -> agent: %v", h, f)
	if x.app.linked && x.appLinked {
		x.toAgent = push(x.toAgent, f)
	}
}

// appHears is the application's end of its connection with the agent.
func (w *world) appHears(h node, f frame) {
	x := &w.hosts[h]
	a := &x.app
	mine := a.id == f.id
	switch f.kind {
	case frameLost:
		a.linked = false
		switch a.phase {
		case appExporting:
			a.phase = appServing
		case appImporting:
			a.orphan = true
		}
	case framePrepare:
		w.fromApp(h, frame{kind: framePrepared, id: f.id})
	case frameExport:
		if a.phase == appServing && x.sock.state == sockLive {
			a.phase, a.id = appExporting, f.id
		} else {
			w.fromApp(h, frame{kind: frameExportRefused, id: f.id})
		}
	case frameResume:
		if mine && (a.phase == appExporting || a.phase == appExported) {
			a.phase = appServing
		}
	case frameMigrated:
		if mine && a.phase == appExported {
			a.phase = appIdle
			x.sock.app = false
			w.releaseIfUnheld(h)
		}
	case frameImport:
		// A descriptor of a socket that has been discarded meanwhile is worth nothing, but it is one.
		x.sock.app = x.sock.state != sockNone
		a.phase, a.id, a.epoch, a.orphan = appImporting, f.id, f.epoch, false
	case frameActivate:
		if mine && a.phase == appImported {
			a.phase, a.epoch = appServing, f.epoch
		}
	case frameWithdraw:
		if mine && (a.phase == appImporting || a.phase == appImported) {
			a.phase = appIdle
			x.sock.app = false
			w.releaseIfUnheld(h)
		}
	}
}

// appWorks lets the application finish an export or import.
func (w *world) appWorks(h node, refuse bool) {
	x := &w.hosts[h]
	a := &x.app
	switch {
	case a.phase == appExporting && refuse:
		a.phase = appServing
		w.fromApp(h, frame{kind: frameExportRefused, id: a.id})
	case a.phase == appExporting:
		a.phase, a.importer = appExported, false
		w.fromApp(h, frame{kind: frameExported, id: a.id, epoch: a.epoch, large: w.large})
	case a.phase == appImporting && refuse:
		a.phase = appIdle
		w.fromApp(h, frame{kind: frameImportRefused, id: a.id})
		x.sock.app = false
		w.releaseIfUnheld(h)
	case a.phase == appImporting:
		a.phase, a.importer = appImported, true
		if a.orphan {
			w.appRecovers(h)
			return
		}
		w.fromApp(h, frame{kind: frameImported, id: a.id})
	}
}

// appLinks connects the application to a new agent, and tells it what the old one left.
func (w *world) appLinks(h node) {
	x := &w.hosts[h]
	x.app.linked, x.appLinked = true, true
	if p := x.app.phase; p == appExported || p == appImported {
		w.appRecovers(h)
	}
}

func (w *world) appRecovers(h node) {
	a := &w.hosts[h].app
	epoch := a.epoch
	if a.importer {
		epoch--
	}
	w.fromApp(h, frame{kind: frameRecover, id: a.id, epoch: epoch, target: a.importer})
}
