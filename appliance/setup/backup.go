package setup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"peerage/appliance/site"
	"peerage/appliance/state"
	"peerage/balancing/keys"
)

// A backup is one file:
//
//	"peerage backup 1\n"   magic and version
//	kind                   1 octet: 0 without a passphrase, n: a passphrase, scrypt with N = 1<<n
//	salt                   32 octets
//	chunk...               64 KiB of the contents each, sealed; the last may be shorter
//
// The contents are the files, each as its name (1 octet of length), pieces (4 octets of
// length, at most maxPiece) and an empty piece; an empty name ends them. Without a
// passphrase the key derives from the salt and hides nothing, but damage is found all the
// same. The chunks are sealed as in STREAM (Hoang et al. 2015): the nonce is the number of
// the chunk and whether it is the last, so that none can be left out or put elsewhere.
const (
	backupMagic = "peerage backup 1\n"
	backupSalt  = 32
	backupChunk = 64 << 10
	backupHead  = len(backupMagic) + 1 + backupSalt

	maxPiece = 1 << 20

	scryptLog    = 16 // 64 MiB and some 0.2 s: appliances are small
	scryptLogMax = 18
)

// Names of the files in a backup, which are not those on disk: the node file says where
// each belongs.
const (
	backupNode        = "node.yaml" // the first
	backupSiteKey     = "site.key"
	backupCA          = state.CAFile
	backupNodeKey     = state.NodeKeyFile
	backupDocument    = "site.yaml"
	backupSettings    = "settings.json"
	backupIncarnation = "incarnation"
	backupDB          = "cluster.db" // the last
)

type backupFile struct {
	name    string
	max     int64 // octets
	needed  bool
	private bool
}

// backupFiles are the files that a backup can have, in this order.
var backupFiles = []backupFile{
	{backupNode, site.MaxNodeFile, true, false},
	{backupSiteKey, 64 << 10, true, true},
	{backupCA, 64 << 10, true, true},
	{backupNodeKey, 64 << 10, false, true}, // a node that never ran has none
	{backupDocument, site.MaxDocument, true, false},
	{backupSettings, 64 << 10, false, true},
	{backupIncarnation, 64 << 10, false, true},
	{backupDB, 2 << 30, false, true},
}

// ErrPassphrase says that a backup is sealed, and the passphrase is not the one, or that
// none is given.
var ErrPassphrase = errors.New("wrong passphrase")

// errDamaged says that a backup is not as it was written.
var errDamaged = errors.New("the backup is damaged or cut off: not one octet of it may be missing or changed")

// BackupOptions say what goes into a backup.
type BackupOptions struct {
	NodePath   string // of the node file
	Passphrase string // "" for a backup that anyone can read who has the file
	// DB writes a consistent copy of the database of a node that runs. Without it the node
	// must not run.
	DB func(io.Writer) error
}

// Backup writes all that a node is into one new file, for its owner alone: [Restore] makes
// the node again from it, on this machine or on another. It holds the secrets of the site.
// A file that is there already stays: the error is [fs.ErrExist] then.
func Backup(path string, o BackupOptions) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write backup: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
			err = fmt.Errorf("write backup %s: %w", path, err)
		}
	}()
	b := bufio.NewWriter(f)
	if err := o.write(b); err != nil {
		return err
	}
	return errors.Join(b.Flush(), f.Sync(), f.Close())
}

func (o *BackupOptions) write(to io.Writer) error {
	nf, files, err := o.read()
	if err != nil {
		return err
	}
	w, err := newSealingWriter(to, o.Passphrase)
	if err != nil {
		return err
	}
	for _, f := range backupFiles {
		var err error
		switch b, ok := files[f.name]; {
		case ok:
			err = writeEntry(w, f.name, func(w io.Writer) error { _, err := w.Write(b); return err })
		case f.name == backupDB:
			err = o.writeDB(w, nf)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if _, err := w.Write([]byte{0}); err != nil {
		return err
	}
	return w.Close()
}

// read reads the small files. If the site key changes over in the midst of it, they do not
// fit each other; it then reads once more.
func (o *BackupOptions) read() (*site.NodeFile, map[string][]byte, error) {
	nf, err := site.LoadNode(o.NodePath)
	if err != nil {
		return nil, nil, err
	}
	for attempt := 0; ; attempt++ {
		files := map[string][]byte{}
		for _, f := range backupFiles {
			if f.name == backupDB {
				continue
			}
			b, err := readBounded(pathOf(nf, o.NodePath, f.name), f.max)
			if errors.Is(err, fs.ErrNotExist) && !f.needed {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			files[f.name] = b
		}
		if _, err := checkFiles(o.NodePath, files); err == nil {
			return nf, files, nil
		} else if attempt == 1 {
			return nil, nil, err
		}
	}
}

// writeDB copies the database.
func (o *BackupOptions) writeDB(w io.Writer, nf *site.NodeFile) error {
	if o.DB != nil {
		return writeEntry(w, backupDB, o.DB)
	}
	dir, err := state.Open(nf.DataDir) // no node may start meanwhile
	if err != nil {
		return err
	}
	defer dir.Close()
	f, err := os.Open(pathOf(nf, o.NodePath, backupDB))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return writeEntry(w, backupDB, func(w io.Writer) error {
		_, err := io.Copy(w, f)
		return err
	})
}

func pathOf(nf *site.NodeFile, nodePath, name string) string {
	switch name {
	case backupNode:
		return nodePath
	case backupSiteKey:
		return nf.SiteKeyFile
	case backupDocument:
		return nf.SiteFile
	}
	return filepath.Join(nf.DataDir, name)
}

func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("read %s: more than %d octets", path, most)
	}
	return b, err
}

// checkFiles reports whether a node could start from the files.
func checkFiles(nodePath string, files map[string][]byte) (*site.NodeFile, error) {
	for _, f := range backupFiles {
		if _, ok := files[f.name]; f.needed && !ok {
			return nil, fmt.Errorf("it has no %s", f.name)
		}
	}
	nf, err := site.ParseNode(nodePath, files[backupNode])
	if err != nil {
		return nil, err
	}
	if _, err := site.ParseDocument(nf.SiteFile, files[backupDocument]); err != nil {
		return nil, err
	}
	ring, err := keys.ParseRing(string(files[backupSiteKey]))
	if err != nil {
		return nil, err
	}
	if _, err := state.ParseCA(files[backupCA], ring); err != nil {
		return nil, fmt.Errorf("%s: %w", backupCA, err)
	}
	if b, ok := files[backupNodeKey]; ok {
		if _, err := state.ParseNodeKey(string(b)); err != nil {
			return nil, err
		}
	}
	return nf, nil
}

func writeEntry(w io.Writer, name string, content func(io.Writer) error) error {
	if _, err := w.Write(append([]byte{byte(len(name))}, name...)); err != nil {
		return err
	}
	p := bufio.NewWriterSize(pieces{w}, maxPiece)
	if err := content(p); err != nil {
		return err
	}
	if err := p.Flush(); err != nil {
		return err
	}
	_, err := w.Write(make([]byte, 4))
	return err
}

// pieces writes each Write as pieces.
type pieces struct{ w io.Writer }

func (p pieces) Write(b []byte) (n int, err error) {
	for piece := range slices.Chunk(b, maxPiece) {
		if _, err := p.w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(piece)))); err != nil {
			return n, err
		}
		m, err := p.w.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

func readName(r io.Reader) (string, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return "", damaged(err)
	}
	name := make([]byte, n[0])
	_, err := io.ReadFull(r, name)
	return string(name), damaged(err)
}

func readEntry(r io.Reader, most int64, w io.Writer) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return damaged(err)
		}
		n := int64(binary.BigEndian.Uint32(head[:]))
		if n == 0 {
			return nil
		}
		if most -= n; n > maxPiece || most < 0 {
			return errors.New("it is larger than such a file can be")
		}
		if _, err := io.CopyN(w, r, n); err != nil {
			return damaged(err)
		}
	}
}

// damaged makes of an early end what it means.
func damaged(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errDamaged
	}
	return err
}
