// SPDX-License-Identifier: Apache-2.0

package peer

import "runtime/debug"

// Version returns the version of this build: the module's when it was installed by version, else the commit's.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value
		}
	}
	return "development"
}
