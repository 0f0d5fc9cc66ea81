package templates

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"path"
	"strings"
)

//go:embed assets/portal.css assets/icons.svg assets/checked.js
var assetFiles embed.FS

// asset is a file as it is served.
type asset struct {
	body        []byte
	contentType string
	path        string
}

// addAsset names the file after its content, so that it may be kept for ever.
func (r *Renderer) addAsset(name, contentType string, body []byte) {
	sum := sha256.Sum256(body)
	ext := path.Ext(name)
	a := &asset{
		body: body, contentType: contentType,
		path: PathAssets + strings.TrimSuffix(name, ext) + "." + hex.EncodeToString(sum[:8]) + ext,
	}
	r.assets[name] = a
	r.assetByPath[a.path] = a
}

// AssetPath returns the path that the file "portal.css", "theme.css",
// "icons.svg" or "checked.js" is served at, with its hash in it, or "" for another name.
func (r *Renderer) AssetPath(name string) string {
	if a, ok := r.assets[name]; ok {
		return a.path
	}
	return ""
}

// Asset returns what to answer at a path below PathAssets. immutable says that
// the path names this content only and may be cached for a year. The body must
// not be changed.
func (r *Renderer) Asset(urlPath string) (body []byte, contentType string, immutable, ok bool) {
	a, ok := r.assetByPath[urlPath]
	if !ok {
		return nil, "", false, false
	}
	return a.body, a.contentType, true, true
}

// ThemeCSS returns the style sheet made from the Theme: custom properties
// only. It is also the asset "theme.css".
func (r *Renderer) ThemeCSS() []byte { return r.assets["theme.css"].body }
