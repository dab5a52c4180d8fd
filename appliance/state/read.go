package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxFile is the size of the largest file that is read here, in octets.
const maxFile = 64 << 10

// readOnly opens a file for reading, and a pipe without waiting for its other side.
const readOnly = os.O_RDONLY | unix.O_NONBLOCK

var (
	errNotRegular = errors.New("not a regular file")
	errTooLarge   = fmt.Errorf("more than %d octets", maxFile)
)

// regular makes an error of everything that was opened but is no regular file.
func regular(f *os.File, err error) (*os.File, fs.FileInfo, error) {
	if errors.Is(err, unix.ENXIO) { // a socket
		return nil, nil, errNotRegular
	}
	if err != nil {
		return nil, nil, cause(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		f.Close()
		return nil, nil, cause(err)
	}
	return f, info, nil
}

// read reads and closes a regular file of at most [maxFile] octets that was just opened.
// Its errors do not name the file.
func read(f *os.File, err error) ([]byte, fs.FileInfo, error) {
	f, info, err := regular(f, err)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = errTooLarge
	}
	if err != nil {
		return nil, nil, cause(err)
	}
	return b, info, nil
}

// cause returns err without the operation and the name that the caller puts better.
func cause(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
