package state

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"peerage/balancing/keys"
	"peerage/tls/certs"
)

// CAFile is the name of the local CA in a data directory: its certificate and its
// private key, which is sealed with the site key, so that the file is of use only
// together with that key. All nodes of a site have the same one.
const CAFile = "ca.sealed"

// The file holds two PEM blocks in this order, and so is written whole or not at all.
const (
	blockCert = "CERTIFICATE"
	blockKey  = "PEERAGE SEALED PRIVATE KEY"
)

// SaveCA writes the local CA, its private key sealed with the newest key of the ring. A
// CA that is there already stays: the error is [fs.ErrExist] then, for what trusts that
// one trusts no other.
func (d *Dir) SaveCA(ca *certs.CA, ring *keys.Ring) error {
	return create(d.root, CAFile, formatCA(ca, ring), 0o600)
}

// LoadCA reads the local CA from the data directory, which it does not lock. A ring of
// two keys opens what either of them sealed.
func LoadCA(dataDir string, ring *keys.Ring) (*certs.CA, error) {
	path := filepath.Join(dataDir, CAFile)
	b, _, err := read(os.OpenFile(path, readOnly, 0))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: 'peerage init' makes it for the first node, every other node needs a copy", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	ca, err := ParseCA(b, ring)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return ca, nil
}

// ResealCA seals the local CA anew if the site changes over to a new key, so that the old
// one can be taken away afterwards.
func (d *Dir) ResealCA(ring *keys.Ring) error {
	if !ring.Changing() {
		return nil
	}
	ca, err := LoadCA(d.root.Name(), ring)
	if err != nil {
		return err
	}
	return d.replaceCA(ca, ring)
}

func (d *Dir) replaceCA(ca *certs.CA, ring *keys.Ring) error {
	return replace(d.root, CAFile, formatCA(ca, ring), 0o600)
}

func formatCA(ca *certs.CA, ring *keys.Ring) []byte {
	cert := ca.CertPEM()
	sealed := ring.Sealer(keys.LabelCA).Seal(nil, ca.MarshalKey(), cert)
	return append(cert, pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: sealed})...)
}

// ParseCA reads the contents of a [CAFile]. That the certificate is what was written with this
// key is part of the seal.
func ParseCA(b []byte, ring *keys.Ring) (*certs.CA, error) {
	cert, rest := pem.Decode(b)
	if cert == nil || cert.Type != blockCert {
		return nil, fmt.Errorf("damaged: it does not begin with a PEM block %s", blockCert)
	}
	key, rest := pem.Decode(rest)
	if key == nil || key.Type != blockKey {
		return nil, fmt.Errorf("damaged: no PEM block %s follows the certificate", blockKey)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("damaged: something follows the private key")
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: cert.Bytes})
	pkcs8, err := ring.Sealer(keys.LabelCA).Open(nil, key.Bytes, certPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: site key and local CA must be copies from one node", err)
	}
	return certs.LoadCA(certPEM, pkcs8)
}
