package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// registryCredentials returns the user's dockerconfigjson: the file
// $REGISTRY_AUTH_FILE, else $DOCKER_CONFIG/config.json, else
// ~/.docker/config.json. It is nil when there is none; a file that a variable
// names must exist.
func registryCredentials() ([]byte, error) {
	file, named := os.Getenv("REGISTRY_AUTH_FILE"), "REGISTRY_AUTH_FILE"
	if file == "" {
		if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
			file, named = filepath.Join(dir, "config.json"), "DOCKER_CONFIG"
		}
	}
	if file == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil //nolint:nilerr // no home directory, so no credentials in it
		}
		file, named = filepath.Join(home, ".docker", "config.json"), ""
	}
	config, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && named == "" {
		return nil, nil
	}
	if err != nil && named != "" {
		return nil, fmt.Errorf("registry credentials: %w: correct or unset %s", err, named)
	}
	return config, err
}
