// SPDX-License-Identifier: Apache-2.0
/* Memory tags of aarch64 (MTE): in memory of every kind, in a child that has some of its parent's pages, in threads that
 * check them at once or later; and pointers with tags that the kernel remembers.  What is compared is what the processor
 * said of each granule before: QEMU 7.2 takes all granules of a page for its first two. */
/* wl: */
#include "wl.h"
#ifdef __aarch64__
#include <setjmp.h>
#include <sys/auxv.h>
#include <sys/shm.h>
#ifndef PR_SET_TAGGED_ADDR_CTRL
#define PR_SET_TAGGED_ADDR_CTRL 55
#define PR_GET_TAGGED_ADDR_CTRL 56
#endif
#define PR_GET_TID_ADDRESS 40
#define PROT_TAGGED 0x20
#define MTE ".arch armv8.5-a+memtag\n "
enum { pages = 4, size = pages * WL_PAGE, granules = size / 16, rw = PROT_READ | PROT_WRITE };
enum { at_once = 1 | 1 << 1 | 0xfffe << 3, later = 1 | 1 << 2 | 0xff0e << 3 }; /* which tags irg may choose: not 0 */
enum { signature = 0xd428bc00, unregister = 1 };				/* of rseq */
extern const ptrdiff_t __rseq_offset __attribute__((weak));

struct area {
	const char *name;
	char *at;
	uint64_t seed;
	unsigned char tags[granules]; /* as the processor says */
};

static struct area areas[] = {{.name = "private"}, {.name = "shared"}, {.name = "memfd"}, {.name = "memfd, private"},
			      {.name = "SysV"}, {.name = "none"}, {.name = "inherited"}, {.name = "changed"},
			      {.name = "file"}};
enum { private, shared, memfd, memfd_private, sysv, none, inherited, changed, file, kinds };
static sigjmp_buf wrong;
static volatile int code;

static char *with_tag(const void *at, uint64_t tag) { return (char *)((uintptr_t)at | tag << 56); }

static uint64_t tag_of(const char *granule)
{
	uint64_t tag = (uintptr_t)granule;
	__asm__ volatile(MTE "ldg %0, [%0]" : "+r"(tag)::"memory");
	return tag >> 56 & 15;
}

static void set_tag(char *granule, uint64_t tag)
{
	__asm__ volatile(MTE "stg %0, [%0]" ::"r"(with_tag(granule, tag)) : "memory");
}

/* `number` pages of an area get other tags, and all are looked at. */
static void tag(struct area *area, int page, int number, uint64_t seed)
{
	for (int i = page * WL_PAGE / 16; i < (page + number) * WL_PAGE / 16; i++)
		set_tag(area->at + 16 * i, seed ? wl_word(seed, i) & 15 : 0);
	for (int i = 0; i < granules; i++)
		area->tags[i] = tag_of(area->at + 16 * i);
}

static void make(int kind, int flags, int fd)
{
	struct area *area = &areas[kind];
	area->seed = 100 + kind;
	/* With room around it, or the kernel makes one of neighbours. */
	area->at = MUST(mmap(NULL, size + 2 * WL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + WL_PAGE;
	flags |= MAP_FIXED | (fd < 0 ? MAP_ANONYMOUS : 0);
	MUST(mmap(area->at, size, rw | PROT_TAGGED, flags, fd, 0));
	wl_fill(area->at, size, area->seed);
	tag(area, 0, pages - 1, area->seed); /* of the last page they stay 0 */
}

static void segfault(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	code = info->si_code;
	siglongjmp(wrong, 1);
}

static void check(struct area *area, const char *who)
{
	for (int i = 0; i < granules; i++) {
		uint64_t now = tag_of(area->at + 16 * i);
		CHECK(now == area->tags[i], "%s, %s: granule %d has tag %d, had %d", who, area->name, i, (int)now, area->tags[i]);
		uint64_t *words = (uint64_t *)with_tag(area->at + 16 * i, now);
		for (int j = 0; j < 2; j++)
			CHECK(words[j] == wl_word(area->seed, 2 * i + j), "%s, %s: content of granule %d", who, area->name, i);
	}
	int flagged;
	wl_smaps_kb(area->at, area->at + size, "Rss", "mt", &flagged);
	CHECK(flagged == 1, "%s, %s: not tagged any more", who, area->name);
}

static void check_faults(struct area *area)
{
	struct sigaction action = {.sa_sigaction = segfault, .sa_flags = SA_SIGINFO | SA_NODEFER};
	sigaction(SIGSEGV, &action, NULL);
	if (!sigsetjmp(wrong, 1)) {
		(void)*(volatile char *)with_tag(area->at, area->tags[0] ^ 1);
		wl_fail("a wrong tag was not noticed");
	}
	CHECK(code == 9, "a wrong tag brought code %d", code); /* SEGV_MTESERR */
	signal(SIGSEGV, SIG_DFL);
}

static long mode(void) { return prctl(PR_GET_TAGGED_ADDR_CTRL, 0, 0, 0, 0); }

static void child(void *unused)
{
	(void)unused;
	struct area *mine = &areas[changed];
	MUST(prctl(PR_SET_TAGGED_ADDR_CTRL, later, 0, 0, 0));
	tag(mine, 0, 1, 7); /* other tags; other content; none any more; new ones */
	for (int i = 0; i < WL_PAGE / 16; i++) {
		int at = WL_PAGE / 16 + i;
		memset(with_tag(mine->at + 16 * at, mine->tags[at]), 'c', 16);
	}
	tag(mine, 2, 1, 0);
	tag(mine, 3, 1, 8);
	wl_child_ready_wait();
	CHECK(mode() == later, "the child's mode is %lx", mode());
	long shares = wl_smaps_kb(areas[inherited].at, areas[inherited].at + size, "Pss", NULL, NULL);
	CHECK(shares == size / 1024 / 2, "%ld kB of the inherited pages are the child's", shares);
	check(&areas[inherited], "child");
	check(&areas[shared], "child");
	for (int i = 0; i < WL_PAGE / 8; i++)
		CHECK(*(uint64_t *)with_tag(mine->at + WL_PAGE + 8 * i, mine->tags[(WL_PAGE + 8 * i) / 16]) == 0x6363636363636363,
		      "the child's content");
	for (int i = 0; i < granules; i++)
		CHECK(tag_of(mine->at + 16 * i) == mine->tags[i], "the child's granule %d has tag %d, had %d", i,
		      (int)tag_of(mine->at + 16 * i), mine->tags[i]);
	_exit(0);
}

static volatile int go;

static void *body(void *unused)
{
	MUST(prctl(PR_SET_TAGGED_ADDR_CTRL, later, 0, 0, 0));
	go = 1;
	while (go == 1)
		usleep(50000);
	CHECK(mode() == later, "the thread's mode is %lx", mode());
	return unused;
}

int main(void)
{
	pthread_t thread;
	uint64_t unchecked;
	wl_begin();
	if (!(getauxval(AT_HWCAP2) & (1 << 18)))
		wl_skip("this processor tags no memory");
	MUST(prctl(PR_SET_TAGGED_ADDR_CTRL, 1, 0, 0, 0));
	make(private, MAP_PRIVATE, -1);
	make(shared, MAP_SHARED, -1);
	int fd = MUST(memfd_create("tagged", 0));
	MUST(ftruncate(fd, size));
	make(memfd, MAP_SHARED, fd);
	MUST(mprotect(areas[memfd].at, size, PROT_READ));
	make(memfd_private, MAP_PRIVATE, fd);
	int id = MUST(shmget(IPC_PRIVATE, size, 0600));
	areas[sysv].at = MUST(shmat(id, NULL, 0));
	MUST(shmctl(id, IPC_RMID, NULL));
	MUST(mprotect(areas[sysv].at, size, rw | PROT_TAGGED));
	areas[sysv].seed = 1;
	wl_fill(areas[sysv].at, size, 1);
	tag(&areas[sysv], 0, pages, 2);
	make(none, MAP_PRIVATE, -1);
	MUST(mprotect(areas[none].at, size, PROT_NONE));
	make(inherited, MAP_PRIVATE, -1);
	make(changed, MAP_PRIVATE, -1);
	fd = MUST(open("/dev/shm", O_TMPFILE | O_RDWR, 0600));
	MUST(ftruncate(fd, size));
	make(file, MAP_SHARED, fd);
	close(fd);
	char *untouched = MUST(mmap(NULL, size, rw | PROT_TAGGED, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	/* What the kernel remembers: pointers with tag 5. */
	char *page = MUST(mmap(NULL, WL_PAGE, rw | PROT_TAGGED, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	for (int i = 0; i < WL_PAGE; i += 16)
		set_tag(page + i, 5);
	page = with_tag(page, 5);
	struct { void *list, *offset, *pending; } *robust = (void *)page, *head;
	robust->list = robust;
	MUST(syscall(SYS_set_robust_list, robust, sizeof *robust));
	MUST(syscall(SYS_set_tid_address, page + 64));
	stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16}, other;
	stack.ss_sp = with_tag(stack.ss_sp, 3);
	MUST(sigaltstack(&stack, NULL));
	bool restartable = &__rseq_offset && !syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, unregister, signature);
	if (restartable)
		MUST(syscall(SYS_rseq, page + 128, 32, 0, signature));
	pid_t pid = wl_child(child, NULL);
	MUST0(pthread_create(&thread, NULL, body, NULL));
	while (!go)
		usleep(1000);
	MUST(prctl(PR_SET_TAGGED_ADDR_CTRL, at_once, 0, 0, 0));
	check_faults(&areas[private]);
	__asm__ volatile(MTE "msr tco, #1" ::: "memory");
	wl_ready_wait();
	__asm__ volatile(MTE "mrs %0, tco\n msr tco, #0" : "=r"(unchecked)::"memory");
	CHECK(unchecked == 1 << 25, "TCO is %lx", unchecked);
	CHECK(mode() == at_once, "the mode is %lx", mode());
	MUST(mprotect(areas[none].at, size, PROT_READ));
	for (int i = 0; i < kinds; i++)
		check(&areas[i], "parent");
	for (int i = 0; i < size; i += 16)
		CHECK(tag_of(untouched + i) == 0 && !untouched[i], "what was not touched has tag %d", (int)tag_of(untouched + i));
	check_faults(&areas[private]);
	check_faults(&areas[shared]);
	size_t length;
	char *address;
	MUST(syscall(SYS_get_robust_list, 0, &head, &length));
	CHECK((void *)head == (void *)robust, "the robust list is at %p", (void *)head);
	MUST(prctl(PR_GET_TID_ADDRESS, &address, 0, 0, 0));
	CHECK(address == page + 64, "clear_child_tid is %p", address);
	MUST(sigaltstack(NULL, &other));
	CHECK(other.ss_sp == stack.ss_sp, "the alternate stack is at %p", other.ss_sp);
	if (restartable)
		MUST(syscall(SYS_rseq, page + 128, 32, unregister, signature));
	wl_end(pid);
	go = 2;
	MUST0(pthread_join(thread, NULL));
	wl_say("exercised: MTE, tagged pointers%s", restartable ? ", tagged rseq" : "");
	wl_pass();
}
#else
int main(void) { wl_skip("MTE is aarch64's"); }
#endif
