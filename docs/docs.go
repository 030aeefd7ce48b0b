// Package docs holds the pages that manual pages are made of.
package docs

import _ "embed"

// Configuration is the reference of all keys.
//
//go:embed configuration.md
var Configuration string
