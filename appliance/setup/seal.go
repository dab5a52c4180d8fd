package setup

import (
	"bufio"
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/scrypt"
)

// backupKey derives the key of the chunks, for this very header.
func backupKey(head []byte, passphrase string) (cipher.AEAD, error) {
	kind, salt := head[len(backupMagic)], head[len(backupMagic)+1:]
	secret := salt
	switch {
	case kind == 0 && passphrase != "":
		return nil, fmt.Errorf("%w: this backup has none, leave it out", ErrPassphrase)
	case kind != 0 && passphrase == "":
		return nil, fmt.Errorf("%w: this backup is sealed with one", ErrPassphrase)
	case kind > scryptLogMax:
		return nil, errDamaged
	case kind != 0:
		var err error
		if secret, err = scrypt.Key([]byte(passphrase), salt, 1<<kind, 8, 1, 32); err != nil {
			return nil, err
		}
	}
	key, err := hkdf.Key(sha256.New, secret, head, "peerage backup", chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	return chacha20poly1305.New(key)
}

// chunkNonce is the nonce of chunk n.
func chunkNonce(n uint64, last bool) []byte {
	nonce := make([]byte, chacha20poly1305.NonceSize)
	binary.BigEndian.PutUint64(nonce[3:], n)
	if last {
		nonce[11] = 1
	}
	return nonce
}

// sealingWriter seals what is written to it. Close seals the last chunk.
type sealingWriter struct {
	to   io.Writer
	aead cipher.AEAD
	n    uint64
	buf  []byte
}

func newSealingWriter(to io.Writer, passphrase string) (*sealingWriter, error) {
	head := append([]byte(backupMagic), make([]byte, 1+backupSalt)...)
	if passphrase != "" {
		head[len(backupMagic)] = scryptLog
	}
	rand.Read(head[len(backupMagic)+1:])
	aead, err := backupKey(head, passphrase)
	if err != nil {
		return nil, err
	}
	if _, err := to.Write(head); err != nil {
		return nil, err
	}
	return &sealingWriter{to: to, aead: aead, buf: make([]byte, 0, backupChunk)}, nil
}

func (w *sealingWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		if len(w.buf) == backupChunk { // something follows, so it is not the last
			if err := w.flush(false); err != nil {
				return n, err
			}
		}
		m := min(len(b), backupChunk-len(w.buf))
		w.buf = append(w.buf, b[:m]...)
		b, n = b[m:], n+m
	}
	return n, nil
}

func (w *sealingWriter) Close() error { return w.flush(true) }

func (w *sealingWriter) flush(last bool) error {
	_, err := w.to.Write(w.aead.Seal(nil, chunkNonce(w.n, last), w.buf, nil))
	w.n++
	w.buf = w.buf[:0]
	return err
}

// openingReader reads what a sealingWriter wrote. It gives out only what it has verified,
// and io.EOF only behind the last chunk.
type openingReader struct {
	from   *bufio.Reader
	aead   cipher.AEAD
	sealed bool // with a passphrase
	n      uint64
	last   bool
	chunk  []byte // still to be given out
}

func newOpeningReader(from *bufio.Reader, passphrase string) (*openingReader, error) {
	head := make([]byte, backupHead)
	n, err := io.ReadFull(from, head)
	switch {
	case !bytes.HasPrefix(head[:n], []byte(backupMagic)[:min(n, len(backupMagic)-2)]) || n == 0:
		return nil, errors.New("it is no backup of a node")
	case n >= len(backupMagic) && string(head[:len(backupMagic)]) != backupMagic:
		return nil, errors.New("it was written by a version of Peerage that this one cannot read")
	case err != nil:
		return nil, damaged(err)
	}
	aead, err := backupKey(head, passphrase)
	if err != nil {
		return nil, err
	}
	return &openingReader{from: from, aead: aead, sealed: passphrase != ""}, nil
}

func (r *openingReader) Read(b []byte) (int, error) {
	if len(r.chunk) == 0 {
		if r.last {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			return 0, err
		}
		if len(r.chunk) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(b, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

// next opens one chunk more.
func (r *openingReader) next() error {
	box := make([]byte, backupChunk+r.aead.Overhead())
	n, err := io.ReadFull(r.from, box)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if _, err := r.from.Peek(1); err != nil {
		if !errors.Is(err, io.EOF) {
			return err
		}
		r.last = true
	}
	r.chunk, err = r.aead.Open(nil, chunkNonce(r.n, r.last), box[:n], nil)
	switch {
	case err != nil && r.sealed && r.n == 0:
		return fmt.Errorf("%w, or %w", ErrPassphrase, errDamaged)
	case err != nil, len(r.chunk) == 0 && r.n > 0:
		return errDamaged
	}
	r.n++
	return nil
}
