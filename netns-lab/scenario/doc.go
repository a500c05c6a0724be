// SPDX-License-Identifier: Apache-2.0

// Package scenario plays rehome's scenes in the laboratory: it builds a lab, runs the agent on its hosts and the demo
// server on its servers, lets ordinary clients work, moves their connections, and reports what the clients saw.
//
// A Cluster is a lab with everything running in it; LiveMigration is a scene.
package scenario
