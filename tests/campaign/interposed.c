/* Stands between a program and libc's calls that change files. Preloaded by tests/campaign/machine.py.

   arm() says which files are watched: those whose path contains a text. Then every call that changes one of them is
   counted. The n-th can end the process, before it, in its middle or after it; from the n-th on, all can fail; and all
   can be recorded, with their bytes, in the order in which they were made. Nothing is watched before arm(). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BEFORE, WITHIN, AFTER, FAIL }; /* what happens at the n-th change */

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static char watched[PATH_MAX];
static long at, count, lasts;
static int how, code, record = -1;
static double rate = 1.0, jump; /* of the clock */
static struct timespec from;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void arm(const char *text, long n, int what, int error, long for_how_many, const char *log) {
    pthread_mutex_lock(&turn);
    strncpy(watched, text, sizeof watched - 1);
    at = n, how = what, code = error, lasts = for_how_many, count = 0;
    if (log && *log) record = REAL(open)(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    pthread_mutex_unlock(&turn);
}

long changes(void) { return count; }

/* From now on clocks run `factor` times as fast, after a jump of so many seconds. */
void set_clock(double factor, double seconds) {
    REAL(clock_gettime)(CLOCK_REALTIME, &from);
    rate = factor, jump = seconds;
}

static int is_watched(const char *path) { return *watched && path && strstr(path, watched) != NULL; }

static int absolute(int folder, const char *path, char *out) {
    char base[PATH_MAX];
    if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path);
    if (folder == AT_FDCWD) {
        if (!getcwd(base, sizeof base)) return -1;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0) return -1;
        base[n] = 0;
    }
    return snprintf(out, PATH_MAX, "%s/%s", base, path);
}

static int path_of(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    out[n < 0 ? 0 : n] = 0;
    return n > 0 && is_watched(out);
}

/* A line of the record: kind, offset, length, path, second path, then the bytes. */
static void note(const char *kind, const char *path, const char *other, off_t offset, const void *data, size_t size) {
    if (record < 0) return;
    char line[2 * PATH_MAX + 128];
    int n = snprintf(line, sizeof line, "%s\t%lld\t%zu\t%s\t%s\n", kind, (long long)offset, size, path, other);
    struct iovec both[2] = {{line, n}, {(void *)data, data ? size : 0}};
    ssize_t done = REAL(writev)(record, both, 2);
    (void)done;
}

/* Counts a change. Returns 1 if it has to fail; `half`, if given, is done before the process ends within it. */
static int due(void) {
    count++;
    if (at <= 0) return 0;
    if (how == FAIL) return count >= at && (lasts < 0 || count < at + lasts);
    if (count == at && how == BEFORE) raise(SIGKILL);
    return 0;
}

static int within(void) { return at > 0 && how == WITHIN && count == at; }
static void ended(void) {
    if (at > 0 && (how == AFTER || how == WITHIN) && count == at) raise(SIGKILL);
}

#define CHANGE(fail, half, call, recorded)                                                                             \
    do {                                                                                                               \
        pthread_mutex_lock(&turn);                                                                                     \
        if (due()) {                                                                                                   \
            pthread_mutex_unlock(&turn);                                                                               \
            errno = code;                                                                                              \
            return fail;                                                                                               \
        }                                                                                                              \
        if (within()) {                                                                                                \
            half;                                                                                                      \
            raise(SIGKILL);                                                                                            \
        }                                                                                                              \
        __auto_type result = call;                                                                                     \
        int kept = errno;                                                                                              \
        if ((long)result >= 0) recorded;                                                                               \
        ended();                                                                                                       \
        pthread_mutex_unlock(&turn);                                                                                   \
        errno = kept;                                                                                                  \
        return result;                                                                                                 \
    } while (0)

static off_t place(int fd) {
    if (fcntl(fd, F_GETFL) & O_APPEND) {
        struct stat s;
        return fstat(fd, &s) ? 0 : s.st_size;
    }
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!*watched || !path_of(fd, path)) return REAL(write)(fd, data, size);
    off_t offset = place(fd);
    CHANGE(-1, (void)!REAL(write)(fd, data, size / 2), REAL(write)(fd, data, size),
           note("write", path, "", offset, data, result));
}

static ssize_t gathered(int fd, const struct iovec *parts, int n, const char *path) {
    size_t size = 0;
    for (int i = 0; i < n; i++) size += parts[i].iov_len;
    char *whole = malloc(size ? size : 1), *end = whole;
    for (int i = 0; i < n; i++) end = (char *)memcpy(end, parts[i].iov_base, parts[i].iov_len) + parts[i].iov_len;
    off_t offset = place(fd);
    CHANGE(-1, (void)!REAL(write)(fd, whole, size / 2), REAL(writev)(fd, parts, n),
           note("write", path, "", offset, whole, result); free(whole));
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    char path[PATH_MAX];
    if (!*watched || !path_of(fd, path)) return REAL(writev)(fd, parts, n);
    return gathered(fd, parts, n, path);
}

#define PWRITE(name, type)                                                                                             \
    ssize_t name(int fd, const void *data, size_t size, type offset) {                                                 \
        char path[PATH_MAX];                                                                                           \
        if (!*watched || !path_of(fd, path)) return REAL(name)(fd, data, size, offset);                                \
        CHANGE(-1, (void)!REAL(name)(fd, data, size / 2, offset), REAL(name)(fd, data, size, offset),                  \
               note("write", path, "", offset, data, result));                                                         \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FD_CALL(name, kind, params, args, offset)                                                                      \
    int name params {                                                                                                  \
        char path[PATH_MAX];                                                                                           \
        if (!*watched || !path_of(fd, path)) return REAL(name) args;                                                   \
        CHANGE(-1, (void)0, REAL(name) args, note(kind, path, "", offset, NULL, 0));                                   \
    }
FD_CALL(fsync, "sync", (int fd), (fd), 0)
FD_CALL(fdatasync, "sync", (int fd), (fd), 0)
FD_CALL(ftruncate, "cut", (int fd, off_t size), (fd, size), size)
FD_CALL(ftruncate64, "cut", (int fd, off64_t size), (fd, size), size)

static int named(const char *kind, int a, const char *old, int b, const char *new, int (*call)(const char *, const char *)) {
    char from_path[PATH_MAX], to_path[PATH_MAX];
    if (!*watched || absolute(a, old, from_path) < 0 || (new && absolute(b, new, to_path) < 0)) return call(old, new);
    if (!is_watched(from_path) && !(new && is_watched(to_path))) return call(old, new);
    CHANGE(-1, (void)0, call(old, new), note(kind, from_path, new ? to_path : "", 0, NULL, 0));
}

static int do_rename(const char *a, const char *b) { return REAL(rename)(a, b); }
static int do_link(const char *a, const char *b) { return REAL(link)(a, b); }
static int do_unlink(const char *a, const char *b) { return (void)b, REAL(unlink)(a); }
static int do_rmdir(const char *a, const char *b) { return (void)b, REAL(rmdir)(a); }
int rename(const char *a, const char *b) { return named("rename", AT_FDCWD, a, AT_FDCWD, b, do_rename); }
int link(const char *a, const char *b) { return named("link", AT_FDCWD, a, AT_FDCWD, b, do_link); }
int unlink(const char *a) { return named("unlink", AT_FDCWD, a, AT_FDCWD, NULL, do_unlink); }
int rmdir(const char *a) { return named("rmdir", AT_FDCWD, a, AT_FDCWD, NULL, do_rmdir); }

static __thread mode_t asked;
static int do_mkdir(const char *a, const char *b) { return (void)b, REAL(mkdir)(a, asked); }
int mkdir(const char *a, mode_t mode) {
    asked = mode;
    return named("mkdir", AT_FDCWD, a, AT_FDCWD, NULL, do_mkdir);
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    int (*call)(int, const char *, int, ...) = REAL(openat);
    char path[PATH_MAX];
    struct stat s;
    int changes_it = *watched && (flags & (O_CREAT | O_TRUNC)) && absolute(folder, name, path) >= 0 && is_watched(path);
    if (!changes_it) return call(folder, name, flags, mode);
    int exists = !fstatat(folder, name, &s, 0);
    if (exists && !((flags & O_TRUNC) && s.st_size > 0)) return call(folder, name, flags, mode);
    CHANGE(-1, (void)0, call(folder, name, flags, mode), note(exists ? "cut" : "create", path, "", 0, NULL, 0));
}

#define OPENER(name, params, folder)                                                                                   \
    int name params {                                                                                                  \
        mode_t mode = 0;                                                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_list rest;                                                                                              \
            va_start(rest, flags);                                                                                     \
            mode = va_arg(rest, mode_t);                                                                               \
            va_end(rest);                                                                                              \
        }                                                                                                              \
        return opened(folder, path, flags, mode);                                                                      \
    }
OPENER(open, (const char *path, int flags, ...), AT_FDCWD)
OPENER(open64, (const char *path, int flags, ...), AT_FDCWD)
OPENER(openat, (int folder, const char *path, int flags, ...), folder)
OPENER(openat64, (int folder, const char *path, int flags, ...), folder)

int clock_gettime(clockid_t which, struct timespec *out) {
    static int (*call)(clockid_t, struct timespec *);
    if (!call) call = REAL(clock_gettime);
    int result = call(which, out);
    /* A monotonic clock may stand or run fast, but never goes back. */
    int moves = which == CLOCK_REALTIME || (which == CLOCK_MONOTONIC && rate >= 0 && jump >= 0);
    if (from.tv_sec && moves && !result) {
        struct timespec now;
        call(CLOCK_REALTIME, &now);
        double since = (now.tv_sec - from.tv_sec) + 1e-9 * (now.tv_nsec - from.tv_nsec);
        double shown = (double)out->tv_sec + 1e-9 * out->tv_nsec + (rate - 1.0) * since + jump;
        if (shown < 0) shown = 0;
        out->tv_sec = (time_t)shown;
        out->tv_nsec = (long)(1e9 * (shown - (double)out->tv_sec));
    }
    return result;
}
