/* Stand-in for VMware's libvixDiskLib.so.8, for nbdkit's vddk plugin against a simulated site.
 *
 * It asks the simulator, over the unix socket beside its own folder, whether login, certificate, VM, snapshot and file
 * are right, and is told the layers of the frozen disk; those it then reads by itself (agent/simulator/layers.py).
 *
 * Requests and replies are lines, ended by an empty one:
 *     connect, then key=value …      ->  ok | error=<VixError>
 *     open, path=…                   ->  ok, capacity=, fail_after=, latency_us=, layer=<prefix> … (base first)
 * The connection stays open as long as the disk is read: that is how the simulator knows.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

typedef uint64_t VixError;
enum {
  VIX_OK = 0,
  VIX_E_FAIL = 1,
  VIX_E_OUT_OF_MEMORY = 2,
  VIX_E_INVALID_ARG = 3,
  VIX_E_FILE_NOT_FOUND = 4,
  VIX_E_NOT_SUPPORTED = 6,
  VIX_E_FILE_ERROR = 7,
  VIX_E_FILE_READ_ONLY = 11,
  VIX_E_OBJECT_NOT_FOUND = 25,
  VIX_E_AUTHENTICATION_FAIL = 35,
  VIX_E_DISK_OUTOFRANGE = 16053,
  VIX_E_CANNOT_CONNECT_TO_HOST = 18000,
  VIX_E_SSL_THUMBPRINT = 14011,
  VIX_ASYNC = 25000,
};

/* The parts of VMware's public interface that the plugin uses; layouts as of VDDK 7 and 8. */
typedef struct {
  char *vmxSpec, *serverName, *thumbPrint;
  long reserved1;
  int credType;
  struct { char *userName, *password, *key; } uid;
  uint32_t port, nfcHostPort;
  char *reserved3;
  char reserved4[8];
  void *reserved5;
  struct { char *id, *datastoreMoRef, *ssId; } spec;
  int specType;
} ConnectParams;

typedef struct {
  uint32_t biosGeo[3], physGeo[3];
  uint64_t capacity; /* sectors */
  int adapterType, numLinks;
  char *parentFileNameHint, *uuid;
  uint32_t logicalSectorSize, physicalSectorSize;
} Info;

typedef struct { uint64_t offset, length; } Block; /* sectors */
typedef struct { uint32_t numBlocks; Block blocks[]; } BlockList;
typedef void GenericLogFunc (const char *format, va_list args);
typedef void CompletionCB (void *data, VixError result);

#define EXPORT __attribute__ ((visibility ("default")))
#define SECTOR 512
#define BLOCK 65536ULL
#define SEGMENT (1ULL << 40)
#define CRED_UID 1
#define LSILOGIC 3
#define READERS 4
#define UNALLOCATED UINT16_MAX

enum { ABSENT = 0, DATA = 1 };

typedef struct { int map, segment_count; int *segments; } Layer;

typedef struct Read {
  struct Read *next;
  struct Disk *disk;
  uint64_t sector, count;
  unsigned char *buffer;
  CompletionCB *done;
  void *data;
} Read;

typedef struct Disk {
  uint64_t capacity; /* bytes */
  int layer_count;
  Layer *layers; /* base first */
  uint64_t fail_after, latency_us, bytes_read;
  unsigned in_flight;
  const char *transport;
} Disk;

typedef struct { FILE *from, *to; const char *transport; } Connection;

/* The queue that the reading threads share; one lock, since it is only ever held for a moment. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queued = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static Read *first_read, **last_read = &first_read;

/* ---- the layers ---- */

static bool
open_layer (Layer *layer, const char *prefix)
{
  char path[PATH_MAX];
  snprintf (path, sizeof path, "%s.map", prefix);
  if ((layer->map = open (path, O_RDONLY | O_CLOEXEC)) < 0)
    return false;
  /* All segments that exist are opened now: consolidation may unlink them while we read. */
  for (int i = 0; i < layer->segment_count; i++) {
    snprintf (path, sizeof path, "%s.s%03d", prefix, i);
    layer->segments[i] = open (path, O_RDONLY | O_CLOEXEC);
    if (layer->segments[i] < 0 && errno != ENOENT)
      return false;
  }
  return true;
}

static void
close_disk (Disk *disk)
{
  for (int i = 0; i < disk->layer_count; i++) {
    for (int j = 0; j < disk->layers[i].segment_count; j++)
      if (disk->layers[i].segments[j] >= 0)
        close (disk->layers[i].segments[j]);
    if (disk->layers[i].map >= 0)
      close (disk->layers[i].map);
    free (disk->layers[i].segments);
  }
  free (disk->layers);
  free (disk);
}

static bool
add_layer (Disk *disk, const char *prefix)
{
  Layer *layers = realloc (disk->layers, (disk->layer_count + 1) * sizeof *layers);
  if (layers == NULL)
    return false;
  disk->layers = layers;
  Layer *layer = &layers[disk->layer_count];
  layer->map = -1;
  layer->segment_count = (disk->capacity + SEGMENT - 1) / SEGMENT;
  if ((layer->segments = malloc (layer->segment_count * sizeof (int))) == NULL)
    return false;
  for (int i = 0; i < layer->segment_count; i++)
    layer->segments[i] = -1;
  disk->layer_count++;
  return open_layer (layer, prefix);
}

/* Which layer holds each of `count` blocks from `first` on: its index, or UNALLOCATED. */
static bool
find_owners (const Disk *disk, uint64_t first, uint64_t count, uint16_t *owners)
{
  unsigned char states[4096];

  for (uint64_t i = 0; i < count; i++)
    owners[i] = UNALLOCATED;
  for (int l = 0; l < disk->layer_count; l++) {
    off_t at = first, end = first + count;
    /* The map's holes say "absent"; skipping them makes an empty 62 TiB disk cheap. */
    while (at < end && (at = lseek (disk->layers[l].map, at, SEEK_DATA)) >= 0 && at < end) {
      size_t want = end - at < (off_t) sizeof states ? (size_t) (end - at) : sizeof states;
      ssize_t got = pread (disk->layers[l].map, states, want, at);
      if (got <= 0)
        return false;
      for (ssize_t i = 0; i < got; i++)
        if (states[i] != ABSENT)
          owners[at - first + i] = states[i] == DATA ? l : UNALLOCATED;
      at += got;
    }
  }
  return true;
}

static bool
read_layer (const Layer *layer, uint64_t offset, uint64_t length, unsigned char *buffer)
{
  while (length > 0) {
    uint64_t in_segment = offset % SEGMENT;
    uint64_t want = length < SEGMENT - in_segment ? length : SEGMENT - in_segment;
    int segment = layer->segments[offset / SEGMENT];
    ssize_t got = segment < 0 ? -1 : pread (segment, buffer, want, in_segment);
    if (got <= 0)
      return false;
    offset += got, length -= got, buffer += got;
  }
  return true;
}

static bool
read_disk (const Disk *disk, uint64_t offset, uint64_t length, unsigned char *buffer)
{
  uint64_t first = offset / BLOCK, count = (offset + length + BLOCK - 1) / BLOCK - first;
  uint16_t *owners = malloc (count * sizeof *owners);
  bool good = owners != NULL && find_owners (disk, first, count, owners);
  uint64_t end = offset + length;

  while (good && offset < end) {
    uint64_t i = offset / BLOCK - first, j = i + 1;
    while (j < count && owners[j] == owners[i])
      j++;
    uint64_t stop = (first + j) * BLOCK < end ? (first + j) * BLOCK : end;
    if (owners[i] == UNALLOCATED)
      memset (buffer, 0, stop - offset);
    else
      good = read_layer (&disk->layers[owners[i]], offset, stop - offset, buffer);
    buffer += stop - offset, offset = stop;
  }
  free (owners);
  return good;
}

/* A read as the simulator scripts it: late, or failing once so many bytes were read. */
static VixError
scripted_read (Disk *disk, uint64_t sector, uint64_t count, unsigned char *buffer)
{
  uint64_t offset = sector * SECTOR, length = count * SECTOR;

  if (offset > disk->capacity || length > disk->capacity - offset)
    return VIX_E_DISK_OUTOFRANGE;
  if (disk->latency_us > 0)
    usleep (disk->latency_us);
  if (__atomic_add_fetch (&disk->bytes_read, length, __ATOMIC_RELAXED) > disk->fail_after)
    return VIX_E_FILE_ERROR;
  return read_disk (disk, offset, length, buffer) ? VIX_OK : VIX_E_FILE_ERROR;
}

/* ---- reading threads ---- */

static void *
serve_reads (void *unused)
{
  pthread_mutex_lock (&lock);
  for (;;) {
    while (first_read == NULL)
      pthread_cond_wait (&queued, &lock);
    Read *read = first_read;
    first_read = read->next;
    if (first_read == NULL)
      last_read = &first_read;
    pthread_mutex_unlock (&lock);

    read->done (read->data, scripted_read (read->disk, read->sector, read->count, read->buffer));

    pthread_mutex_lock (&lock);
    read->disk->in_flight--;
    pthread_cond_broadcast (&finished);
    free (read);
  }
  return NULL;
}

/* ---- talking to the simulator ---- */

/* The socket lies beside the folder this library was loaded from. Its path may be longer than a socket address can be,
 * so it is reached by way of a descriptor of the folder. */
static int
connect_simulator (void)
{
  Dl_info self;
  char path[PATH_MAX];
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  if (!dladdr ((void *) connect_simulator, &self) || realpath (self.dli_fname, path) == NULL)
    return -1;
  int folder = open (dirname (dirname (path)), O_PATH | O_DIRECTORY | O_CLOEXEC);
  int socket_ = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  snprintf (address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/socket", folder);
  bool connected = folder >= 0 && socket_ >= 0
                   && connect (socket_, (struct sockaddr *) &address, sizeof address) == 0;
  if (folder >= 0)
    close (folder);
  if (!connected && socket_ >= 0)
    close (socket_);
  return connected ? socket_ : -1;
}

static void
send_field (FILE *to, const char *key, const char *value)
{
  fprintf (to, "%s=%.*s\n", key, value ? (int) strcspn (value, "\n") : 0, value ? value : "");
}

/* The next line of a reply without its newline, false at the empty line that ends it. */
static bool
reply_line (FILE *from, char **line, size_t *size)
{
  ssize_t length = getline (line, size, from);
  if (length <= 1)
    return false;
  (*line)[length - 1] = '\0';
  return true;
}

static VixError
take_field (Disk *disk, const char *line)
{
  if (strncmp (line, "error=", 6) == 0)
    return strtoull (line + 6, NULL, 10);
  if (strncmp (line, "capacity=", 9) == 0)
    disk->capacity = strtoull (line + 9, NULL, 10);
  else if (strncmp (line, "fail_after=", 11) == 0)
    disk->fail_after = strtoull (line + 11, NULL, 10);
  else if (strncmp (line, "latency_us=", 11) == 0)
    disk->latency_us = strtoull (line + 11, NULL, 10);
  else if (strncmp (line, "layer=", 6) == 0 && !add_layer (disk, line + 6))
    return VIX_E_FILE_ERROR;
  return VIX_OK;
}

/* Send what was written to the connection and take the reply; a peer that is gone is an error, too. */
static VixError
ask (Connection *connection, Disk *disk)
{
  char *line = NULL;
  size_t size = 0;
  VixError result = VIX_OK;
  bool answered = false;

  fputc ('\n', connection->to);
  if (fflush (connection->to) != 0)
    return VIX_E_CANNOT_CONNECT_TO_HOST;
  while (reply_line (connection->from, &line, &size)) {
    answered = true;
    VixError error = take_field (disk, line);
    if (result == VIX_OK)
      result = error;
  }
  free (line);
  return answered ? result : VIX_E_CANNOT_CONNECT_TO_HOST;
}

/* ---- the interface, as declared in VMware's vixDiskLib.h ---- */

EXPORT VixError
VixDiskLib_InitEx (uint32_t major, uint32_t minor, GenericLogFunc *log, GenericLogFunc *warn, GenericLogFunc *panic,
                   const char *lib_dir, const char *config_file)
{
  pthread_t thread;
  for (int i = 0; i < READERS; i++) {
    if (pthread_create (&thread, NULL, serve_reads, NULL) != 0)
      return VIX_E_OUT_OF_MEMORY;
    pthread_detach (thread);
  }
  return VIX_OK;
}

EXPORT void VixDiskLib_Exit (void) {}

EXPORT char *
VixDiskLib_GetErrorText (VixError error, const char *locale)
{
  static const struct { VixError error; const char *text; } texts[] = {
    { VIX_OK, "The operation was successful" },
    { VIX_E_OUT_OF_MEMORY, "Memory allocation failed. Out of memory" },
    { VIX_E_INVALID_ARG, "One of the parameters was invalid" },
    { VIX_E_FILE_NOT_FOUND, "A file was not found" },
    { VIX_E_NOT_SUPPORTED, "The operation is not supported" },
    { VIX_E_FILE_ERROR, "A file access error occurred on the host or guest operating system" },
    { VIX_E_FILE_READ_ONLY, "The file is write-protected" },
    { VIX_E_OBJECT_NOT_FOUND, "The request refers to an object that no longer exists or has never existed" },
    { VIX_E_AUTHENTICATION_FAIL, "Cannot authenticate: the user name or password is incorrect" },
    { VIX_E_DISK_OUTOFRANGE, "You have requested access to an area of the virtual disk that is out of bounds" },
    { VIX_E_CANNOT_CONNECT_TO_HOST, "Cannot connect to host" },
    { VIX_E_SSL_THUMBPRINT, "The host certificate's thumbprint does not match the one given" },
  };
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
    if (texts[i].error == error)
      return strdup (texts[i].text);
  return strdup ("Unknown error");
}

EXPORT void VixDiskLib_FreeErrorText (char *text) { free (text); }

EXPORT ConnectParams *VixDiskLib_AllocateConnectParams (void) { return calloc (1, sizeof (ConnectParams)); }

EXPORT void VixDiskLib_FreeConnectParams (ConnectParams *params) { free (params); }

EXPORT const char *VixDiskLib_ListTransportModes (void) { return "nbdssl:nbd"; }

EXPORT VixError
VixDiskLib_Disconnect (Connection *connection)
{
  if (connection->from != NULL)
    fclose (connection->from);
  if (connection->to != NULL)
    fclose (connection->to);
  free (connection);
  return VIX_OK;
}

EXPORT VixError
VixDiskLib_ConnectEx (const ConnectParams *params, char read_only, const char *snapshot, const char *transports,
                      Connection **result)
{
  char port[16];
  Disk nothing = { 0 };
  Connection *connection = calloc (1, sizeof *connection);
  if (connection == NULL)
    return VIX_E_OUT_OF_MEMORY;
  int socket_ = connect_simulator ();
  if (socket_ >= 0) {
    connection->from = fdopen (socket_, "r");
    connection->to = fdopen (dup (socket_), "w");
  }
  if (connection->from == NULL || connection->to == NULL) {
    VixDiskLib_Disconnect (connection);
    return VIX_E_CANNOT_CONNECT_TO_HOST;
  }
  /* The first mode of the list that can be had is taken; the simulator refuses a list with none. */
  connection->transport = transports && strncmp (transports, "nbd", 3) == 0 && transports[3] != 's' ? "nbd" : "nbdssl";

  snprintf (port, sizeof port, "%" PRIu32, params->port);
  fprintf (connection->to, "connect\n");
  send_field (connection->to, "server", params->serverName);
  send_field (connection->to, "port", port);
  send_field (connection->to, "user", params->credType == CRED_UID ? params->uid.userName : NULL);
  send_field (connection->to, "password", params->credType == CRED_UID ? params->uid.password : NULL);
  send_field (connection->to, "thumbprint", params->thumbPrint);
  send_field (connection->to, "vm", params->vmxSpec);
  send_field (connection->to, "snapshot", snapshot);
  send_field (connection->to, "transports", transports);
  VixError error = ask (connection, &nothing);
  if (error == VIX_OK)
    *result = connection;
  else
    VixDiskLib_Disconnect (connection);
  return error;
}

EXPORT VixError
VixDiskLib_Open (Connection *connection, const char *path, uint32_t flags, Disk **result)
{
  Disk *disk = calloc (1, sizeof *disk);
  if (disk == NULL)
    return VIX_E_OUT_OF_MEMORY;
  disk->fail_after = UINT64_MAX;
  disk->transport = connection->transport;
  fprintf (connection->to, "open\n");
  send_field (connection->to, "path", path);
  VixError error = ask (connection, disk);
  if (error == VIX_OK)
    *result = disk;
  else
    close_disk (disk);
  return error;
}

EXPORT const char *VixDiskLib_GetTransportMode (Disk *disk) { return disk->transport; }

EXPORT VixError
VixDiskLib_Wait (Disk *disk)
{
  pthread_mutex_lock (&lock);
  while (disk->in_flight > 0)
    pthread_cond_wait (&finished, &lock);
  pthread_mutex_unlock (&lock);
  return VIX_OK;
}

EXPORT VixError
VixDiskLib_Close (Disk *disk)
{
  VixDiskLib_Wait (disk);
  close_disk (disk);
  return VIX_OK;
}

EXPORT VixError
VixDiskLib_GetInfo (Disk *disk, Info **result)
{
  Info *info = calloc (1, sizeof *info);
  if (info == NULL)
    return VIX_E_OUT_OF_MEMORY;
  info->capacity = disk->capacity / SECTOR;
  info->adapterType = LSILOGIC;
  info->numLinks = disk->layer_count;
  info->logicalSectorSize = info->physicalSectorSize = SECTOR;
  *result = info;
  return VIX_OK;
}

EXPORT void VixDiskLib_FreeInfo (Info *info) { free (info); }

EXPORT VixError
VixDiskLib_Read (Disk *disk, uint64_t sector, uint64_t count, unsigned char *buffer)
{
  return scripted_read (disk, sector, count, buffer);
}

EXPORT VixError
VixDiskLib_ReadAsync (Disk *disk, uint64_t sector, uint64_t count, unsigned char *buffer, CompletionCB *done,
                      void *data)
{
  Read *read = malloc (sizeof *read);
  if (read == NULL)
    return VIX_E_OUT_OF_MEMORY;
  *read = (Read) { NULL, disk, sector, count, buffer, done, data };
  pthread_mutex_lock (&lock);
  disk->in_flight++;
  *last_read = read;
  last_read = &read->next;
  pthread_cond_signal (&queued);
  pthread_mutex_unlock (&lock);
  return VIX_ASYNC;
}

/* Snapshots are read-only: what a backup must never do fails. */
EXPORT VixError
VixDiskLib_Write (Disk *disk, uint64_t sector, uint64_t count, const unsigned char *buffer)
{
  return VIX_E_FILE_READ_ONLY;
}

EXPORT VixError
VixDiskLib_WriteAsync (Disk *disk, uint64_t sector, uint64_t count, const unsigned char *buffer, CompletionCB *done,
                       void *data)
{
  return VIX_E_FILE_READ_ONLY;
}

EXPORT VixError VixDiskLib_Flush (Disk *disk) { return VIX_OK; }

EXPORT VixError
VixDiskLib_Create (Connection *connection, const char *path, const void *params, void *progress, void *data)
{
  return VIX_E_NOT_SUPPORTED;
}

/* Chunks that hold any data, as runs; a chunk is whole blocks here, as for the plugin. */
EXPORT VixError
VixDiskLib_QueryAllocatedBlocks (Disk *disk, uint64_t sector, uint64_t count, uint64_t chunk, BlockList **result)
{
  const uint64_t per_block = BLOCK / SECTOR, sectors = disk->capacity / SECTOR;
  if (chunk != per_block || sector % chunk != 0 || count % chunk != 0)
    return VIX_E_INVALID_ARG;
  uint64_t first = sector / per_block, blocks = count / per_block;
  uint16_t *owners = malloc (blocks * sizeof *owners);
  BlockList *list = malloc (sizeof *list + (blocks / 2 + 1) * sizeof (Block));
  bool good = owners != NULL && list != NULL && find_owners (disk, first, blocks, owners);

  if (good) {
    list->numBlocks = 0;
    for (uint64_t i = 0, j; i < blocks; i = j) {
      for (j = i + 1; j < blocks && (owners[j] == UNALLOCATED) == (owners[i] == UNALLOCATED); j++)
        ;
      uint64_t start = (first + i) * per_block, end = (first + j) * per_block;
      if (owners[i] != UNALLOCATED)
        list->blocks[list->numBlocks++] = (Block) { start, (end < sectors ? end : sectors) - start };
    }
    *result = list;
  } else
    free (list);
  free (owners);
  return good ? VIX_OK : VIX_E_FILE_ERROR;
}

EXPORT void VixDiskLib_FreeBlockList (BlockList *list) { free (list); }
