// SPDX-License-Identifier: Apache-2.0
/* What a deleted file, a deleted directory and a memfd have besides: extended attributes, flags of chattr, a hint,
 * times (before 1970, after 2038). */
/* wl: */
#define _FILE_OFFSET_BITS 64
#define _TIME_BITS 64
#include "fd.h"
#include <linux/fs.h>
#include <sys/xattr.h>

#ifndef F_SET_RW_HINT
#define F_GET_RW_HINT 1035
#define F_SET_RW_HINT 1036
#endif

enum { file, directory, memory, count };
static const char *const names[] = {"file", "directory", "memfd"};
static const struct timespec times[] = {{-1000000000, 123456789}, {4102444800, 987654321}};

int main(void)
{
	int fds[count], flags[count], now = 0;
	uint64_t hint = 4;
	struct fd_facts was[count];
	bool hinted[count], flagged[count];
	wl_begin();
	fds[file] = MUST(open("file", O_RDWR | O_CREAT | O_EXCL, 0600));
	MUST(mkdir("directory", 0700));
	fds[directory] = MUST(open("directory", O_RDONLY));
	fds[memory] = MUST(memfd_create("memory", 0));
	MUST(unlink("file"));
	MUST(rmdir("directory"));
	for (int i = 0; i < count; i++) {
		if (i != directory)
			fd_put(fds[i], "content", 7);
		MUST(fchown(fds[i], 1234, 4321));
		MUST(fchmod(fds[i], 04751));
		if (fsetxattr(fds[i], "trusted.torpor", names[i], strlen(names[i]), 0) == -1)
			wl_skip("extended attributes of a %s: %s", names[i], strerror(errno));
		hinted[i] = i != directory && fcntl(fds[i], F_SET_RW_HINT, &hint) == 0;
		flagged[i] = ioctl(fds[i], FS_IOC_GETFLAGS, &flags[i]) == 0;
		flags[i] |= FS_NODUMP_FL;
		flagged[i] = flagged[i] && ioctl(fds[i], FS_IOC_SETFLAGS, &flags[i]) == 0;
		MUST(futimens(fds[i], times));
		was[i] = fd_look(fds[i]);
	}
	wl_ready_wait();
	for (int i = 0; i < count; i++) {
		char value[20];
		struct fd_facts is = fd_look(fds[i]);
		fd_check(&was[i], names[i]);
		ssize_t n = fgetxattr(fds[i], "trusted.torpor", value, sizeof value);
		CHECK(n == (ssize_t)strlen(names[i]) && !memcmp(value, names[i], (size_t)n), "%s: attribute of %zd bytes", names[i], n);
		if (hinted[i]) {
			MUST(fcntl(fds[i], F_GET_RW_HINT, &hint));
			CHECK(hint == 4, "%s: the hint is %" PRIu64, names[i], hint);
		}
		if (flagged[i]) {
			MUST(ioctl(fds[i], FS_IOC_GETFLAGS, &now));
			CHECK(now & FS_NODUMP_FL, "%s: flags are %#x, were %#x", names[i], (unsigned)now, (unsigned)flags[i]);
		}
		CHECK(is.stat.st_mtim.tv_sec == was[i].stat.st_mtim.tv_sec && is.stat.st_mtim.tv_nsec == was[i].stat.st_mtim.tv_nsec,
		      "%s: changed at %lld.%09ld", names[i], (long long)is.stat.st_mtim.tv_sec, (long)is.stat.st_mtim.tv_nsec);
		CHECK(i == memory || is.stat.st_atim.tv_sec == was[i].stat.st_atim.tv_sec, "%s: read at %lld", names[i], (long long)is.stat.st_atim.tv_sec);
	}
	wl_pass();
}
