// These functions stand between libseccomp and who calls it; see filter.go. There is one filter at a time, from
// seccomp_init to seccomp_export_bpf.

#include <errno.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "filter.h"

scmp_filter_ctx __real_seccomp_init(uint32_t action);
int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n,
				  const struct scmp_arg_cmp *args);
int __real_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd);

// A call of libseccomp, as it is noted and compared: without padding.
struct call {
	enum { INIT = 1, ARCH, ATTR, RULE } what;
	uint32_t a;
	int32_t b;
	uint32_t args;
	struct {
		uint32_t arg, op;
		uint64_t a, b;
	} arg[6]; // as many as a system call has; of these, only so many as there are count
};

static struct calls {
	struct call *list;
	size_t n, room;
	int lost; // no memory: nothing is known of this filter any more
} calls;

static void note(struct call c)
{
	if (calls.n == calls.room) {
		size_t room = calls.room ? 2 * calls.room : 512;
		struct call *list = realloc(calls.list, room * sizeof c);
		if (list == NULL) {
			calls.lost = 1;
			return;
		}
		calls.list = list;
		calls.room = room;
	}
	calls.list[calls.n++] = c;
}

scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	calls.n = 0;
	calls.lost = 0;
	note((struct call){.what = INIT, .a = action});
	return __real_seccomp_init(action);
}

int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	note((struct call){.what = ARCH, .a = arch});
	return __real_seccomp_arch_add(ctx, arch);
}

int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	note((struct call){.what = ATTR, .a = attr, .b = (int32_t)value});
	return __real_seccomp_attr_set(ctx, attr, value);
}

// Rules are what takes time. libseccomp is told them when the filter is exported, if at all.
int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n,
				  const struct scmp_arg_cmp *args)
{
	struct call c = {.what = RULE, .a = action, .b = syscall, .args = n};
	(void)ctx;
	if (n > sizeof c.arg / sizeof *c.arg)
		return -EINVAL;
	for (unsigned int i = 0; i < n; i++) {
		c.arg[i].arg = args[i].arg;
		c.arg[i].op = args[i].op;
		c.arg[i].a = args[i].datum_a;
		c.arg[i].b = args[i].datum_b;
	}
	note(c);
	return 0;
}

static int tell(scmp_filter_ctx ctx)
{
	if (calls.lost)
		return -ENOMEM;
	for (const struct call *c = calls.list; c < calls.list + calls.n; c++) {
		struct scmp_arg_cmp args[6];
		if (c->what != RULE)
			continue;
		for (uint32_t i = 0; i < c->args; i++)
			args[i] = (struct scmp_arg_cmp){c->arg[i].arg, c->arg[i].op, c->arg[i].a, c->arg[i].b};
		int rc = __real_seccomp_rule_add_array(ctx, c->a, c->b, c->args, args);
		if (rc != 0)
			return rc;
	}
	return 0;
}

static int write_all(int fd, const void *data, size_t n)
{
	for (const char *p = data; n > 0;) {
		ssize_t done = write(fd, p, n);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		p += done;
		n -= done;
	}
	return 0;
}

// The file: its head, the calls, and the program that libseccomp made of them.
struct head {
	char magic[8];
	uint64_t calls;
};
static const char magic[8] = "orlopbpf";

static const struct head *adopted;
static size_t adopted_size;

void filter_adopt(int fd)
{
	struct stat st;
	if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof(struct head))
		return;
	void *p = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED || memcmp(p, magic, sizeof magic) != 0)
		return;
	adopted = p;
	adopted_size = st.st_size;
}

// known is the program of a filter that was told the same as that of the adopted file.
static const void *known(size_t *n)
{
	size_t told = calls.n * sizeof(struct call);
	if (adopted == NULL || calls.lost || adopted->calls != calls.n || adopted_size - sizeof *adopted <= told)
		return NULL;
	if (memcmp(adopted + 1, calls.list, told) != 0)
		return NULL;
	*n = adopted_size - sizeof *adopted - told;
	return (const char *)(adopted + 1) + told;
}

static int capture_to = -1;
static int captured;

void filter_capture(int fd)
{
	capture_to = fd;
	captured = 0;
}

int filter_captured(void)
{
	capture_to = -1;
	return captured;
}

static int capture(scmp_filter_ctx ctx)
{
	struct head head = {.calls = calls.n};
	memcpy(head.magic, magic, sizeof magic);
	captured = write_all(capture_to, &head, sizeof head) == 0 &&
		   write_all(capture_to, calls.list, calls.n * sizeof *calls.list) == 0 &&
		   __real_seccomp_export_bpf(ctx, capture_to) == 0;
	return -ECANCELED;
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	size_t n;
	const void *program = known(&n);
	if (program != NULL)
		return write_all(fd, program, n);
	int rc = tell(ctx);
	if (rc != 0)
		return rc;
	return capture_to < 0 ? __real_seccomp_export_bpf(ctx, fd) : capture(ctx);
}

// What would use a filter whose rules libseccomp has not been told is refused; libcontainer calls none of it.

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int syscall, unsigned int n,
					const struct scmp_arg_cmp *args)
{
	(void)ctx, (void)action, (void)syscall, (void)n, (void)args;
	return -EOPNOTSUPP;
}

int __wrap_seccomp_arch_remove(scmp_filter_ctx ctx, uint32_t arch)
{
	(void)ctx, (void)arch;
	return -EOPNOTSUPP;
}

int __wrap_seccomp_merge(scmp_filter_ctx dst, scmp_filter_ctx src)
{
	(void)dst, (void)src;
	return -EOPNOTSUPP;
}

int __wrap_seccomp_reset(scmp_filter_ctx ctx, uint32_t action)
{
	(void)ctx, (void)action;
	return -EOPNOTSUPP;
}

int __wrap_seccomp_load(const scmp_filter_ctx ctx)
{
	(void)ctx;
	return -EOPNOTSUPP;
}

int __wrap_seccomp_export_pfc(const scmp_filter_ctx ctx, int fd)
{
	(void)ctx, (void)fd;
	return -EOPNOTSUPP;
}
