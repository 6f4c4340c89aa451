package nodecache

const crashEnv = "NODECACHE_TEST_CRASH"

func crashChild() {}
