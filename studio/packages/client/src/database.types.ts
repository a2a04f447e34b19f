// The tables as they are in supabase/migrations. Written by `make types`; `make check` says when it is old.

export type Json = string | number | boolean | null | { [key: string]: Json | undefined } | Json[]

export type Database = {
  public: {
    Tables: {
      fleet_settings: {
        Row: {
          cool_down_seconds: number
          idle_minutes: number
          jobs_per_worker: number
          max_workers: number
          patience_seconds: number
          start_timeout_seconds: number
          target_worker: string
        }
        ComputedFields: never
        Insert: {
          cool_down_seconds?: number
          idle_minutes?: number
          jobs_per_worker?: number
          max_workers?: number
          patience_seconds?: number
          start_timeout_seconds?: number
          target_worker: string
        }
        Update: {
          cool_down_seconds?: number
          idle_minutes?: number
          jobs_per_worker?: number
          max_workers?: number
          patience_seconds?: number
          start_timeout_seconds?: number
          target_worker?: string
        }
        Relationships: []
      }
      job_events: {
        Row: {
          attempt: number
          created_at: string
          error_code: string | null
          id: number
          job_id: string
          status: string
          worker: string | null
        }
        ComputedFields: never
        Insert: {
          attempt: number
          created_at?: string
          error_code?: string | null
          id?: never
          job_id: string
          status: string
          worker?: string | null
        }
        Update: {
          attempt?: number
          created_at?: string
          error_code?: string | null
          id?: never
          job_id?: string
          status?: string
          worker?: string | null
        }
        Relationships: [
          {
            foreignKeyName: 'job_events_job_id_fkey'
            columns: ['job_id']
            isOneToOne: false
            referencedRelation: 'job_audit'
            referencedColumns: ['job_id']
          },
          {
            foreignKeyName: 'job_events_job_id_fkey'
            columns: ['job_id']
            isOneToOne: false
            referencedRelation: 'jobs'
            referencedColumns: ['id']
          },
        ]
      }
      job_images: {
        Row: {
          bucket: string
          bytes: number
          created_at: string
          height: number
          index: number
          job_id: string
          mime_type: string
          path: string
          seed: number
          sha256: string
          similarity_score: number | null
          thumbnail_path: string
          width: number
        }
        ComputedFields: never
        Insert: {
          bucket: string
          bytes: number
          created_at?: string
          height: number
          index: number
          job_id: string
          mime_type: string
          path: string
          seed: number
          sha256: string
          similarity_score?: number | null
          thumbnail_path: string
          width: number
        }
        Update: {
          bucket?: string
          bytes?: number
          created_at?: string
          height?: number
          index?: number
          job_id?: string
          mime_type?: string
          path?: string
          seed?: number
          sha256?: string
          similarity_score?: number | null
          thumbnail_path?: string
          width?: number
        }
        Relationships: [
          {
            foreignKeyName: 'job_images_job_id_fkey'
            columns: ['job_id']
            isOneToOne: false
            referencedRelation: 'job_audit'
            referencedColumns: ['job_id']
          },
          {
            foreignKeyName: 'job_images_job_id_fkey'
            columns: ['job_id']
            isOneToOne: false
            referencedRelation: 'jobs'
            referencedColumns: ['id']
          },
        ]
      }
      jobs: {
        Row: {
          attempts: number
          batch_size: number
          cancel_requested_at: string | null
          completed_at: string | null
          created_at: string
          enhance_prompt: boolean
          enhanced_prompt: string | null
          error_code: string | null
          error_message: string | null
          exact_copy_mode: boolean
          fallback_to_text: boolean
          guidance_scale: number | null
          height: number | null
          id: string
          idempotency_key: string | null
          job_type: string
          max_attempts: number
          metadata: NonNullable<Json>
          metrics: Json | null
          negative_prompt: string
          output_format: string
          priority: number
          progress: number
          prompt: string
          reference_image_path: string | null
          reference_image_url: string | null
          reference_strength: number | null
          run_at: string
          scheduler: string | null
          seed: number | null
          started_at: string | null
          status: string
          steps: number | null
          target_worker: string
          user_id: string
          warnings: NonNullable<Json>
          width: number | null
        }
        ComputedFields: never
        Insert: {
          attempts?: number
          batch_size?: number
          cancel_requested_at?: string | null
          completed_at?: string | null
          created_at?: string
          enhance_prompt?: boolean
          enhanced_prompt?: string | null
          error_code?: string | null
          error_message?: string | null
          exact_copy_mode?: boolean
          fallback_to_text?: boolean
          guidance_scale?: number | null
          height?: number | null
          id?: string
          idempotency_key?: string | null
          job_type: string
          max_attempts?: number
          metadata?: NonNullable<Json>
          metrics?: Json | null
          negative_prompt?: string
          output_format?: string
          priority?: number
          progress?: number
          prompt?: string
          reference_image_path?: string | null
          reference_image_url?: string | null
          reference_strength?: number | null
          run_at?: string
          scheduler?: string | null
          seed?: number | null
          started_at?: string | null
          status?: string
          steps?: number | null
          target_worker?: string
          user_id?: string
          warnings?: NonNullable<Json>
          width?: number | null
        }
        Update: {
          attempts?: number
          batch_size?: number
          cancel_requested_at?: string | null
          completed_at?: string | null
          created_at?: string
          enhance_prompt?: boolean
          enhanced_prompt?: string | null
          error_code?: string | null
          error_message?: string | null
          exact_copy_mode?: boolean
          fallback_to_text?: boolean
          guidance_scale?: number | null
          height?: number | null
          id?: string
          idempotency_key?: string | null
          job_type?: string
          max_attempts?: number
          metadata?: NonNullable<Json>
          metrics?: Json | null
          negative_prompt?: string
          output_format?: string
          priority?: number
          progress?: number
          prompt?: string
          reference_image_path?: string | null
          reference_image_url?: string | null
          reference_strength?: number | null
          run_at?: string
          scheduler?: string | null
          seed?: number | null
          started_at?: string | null
          status?: string
          steps?: number | null
          target_worker?: string
          user_id?: string
          warnings?: NonNullable<Json>
          width?: number | null
        }
        Relationships: []
      }
      negative_presets: {
        Row: {
          job_type: string
          negative_prompt: string
        }
        ComputedFields: never
        Insert: {
          job_type: string
          negative_prompt?: string
        }
        Update: {
          job_type?: string
          negative_prompt?: string
        }
        Relationships: []
      }
      retention: {
        Row: {
          days: number | null
          next_at: string
          only_row: boolean
        }
        ComputedFields: never
        Insert: {
          days?: number | null
          next_at?: string
          only_row?: boolean
        }
        Update: {
          days?: number | null
          next_at?: string
          only_row?: boolean
        }
        Relationships: []
      }
      worker_starts: {
        Row: {
          attempts: number
          created_at: string
          ended_at: string | null
          error: string | null
          id: string
          next_try_at: string
          pod_id: string | null
          provider: string | null
          requested_at: string | null
          running_at: string | null
          state: string
          target_worker: string
        }
        ComputedFields: never
        Insert: {
          attempts?: number
          created_at?: string
          ended_at?: string | null
          error?: string | null
          id?: string
          next_try_at?: string
          pod_id?: string | null
          provider?: string | null
          requested_at?: string | null
          running_at?: string | null
          state?: string
          target_worker: string
        }
        Update: {
          attempts?: number
          created_at?: string
          ended_at?: string | null
          error?: string | null
          id?: string
          next_try_at?: string
          pod_id?: string | null
          provider?: string | null
          requested_at?: string | null
          running_at?: string | null
          state?: string
          target_worker?: string
        }
        Relationships: []
      }
      workers: {
        Row: {
          engine: string | null
          engine_note: string | null
          error: string | null
          failed_at: string | null
          gpu: string | null
          host: string
          id: string
          idle_since: string | null
          last_seen_at: string
          max_jobs: number
          model: string | null
          pod_id: string | null
          report_seconds: number
          start_id: string | null
          started_at: string
          state: string
          target_worker: string
          version: string
          vram_mb: number | null
        }
        ComputedFields: never
        Insert: {
          engine?: string | null
          engine_note?: string | null
          error?: string | null
          failed_at?: string | null
          gpu?: string | null
          host: string
          id: string
          idle_since?: string | null
          last_seen_at?: string
          max_jobs?: number
          model?: string | null
          pod_id?: string | null
          report_seconds?: number
          start_id?: string | null
          started_at?: string
          state: string
          target_worker: string
          version: string
          vram_mb?: number | null
        }
        Update: {
          engine?: string | null
          engine_note?: string | null
          error?: string | null
          failed_at?: string | null
          gpu?: string | null
          host?: string
          id?: string
          idle_since?: string | null
          last_seen_at?: string
          max_jobs?: number
          model?: string | null
          pod_id?: string | null
          report_seconds?: number
          start_id?: string | null
          started_at?: string
          state?: string
          target_worker?: string
          version?: string
          vram_mb?: number | null
        }
        Relationships: []
      }
    }
    Views: {
      fleet: {
        Row: {
          engine: string | null
          engine_note: string | null
          error: string | null
          failed_at: string | null
          gpu: string | null
          host: string | null
          id: string | null
          is_live: boolean | null
          last_seen_at: string | null
          max_jobs: number | null
          model: string | null
          pod_id: string | null
          report_seconds: number | null
          running: number | null
          seen_seconds_ago: number | null
          started_at: string | null
          state: string | null
          target_worker: string | null
          version: string | null
          vram_mb: number | null
        }
        ComputedFields: never
        Relationships: []
      }
      job_audit: {
        Row: {
          asked_at: string
          attempts: number
          batch_size: number
          cancel_requested_at: string | null
          claims: number | null
          cost: number | null
          crashes: number | null
          ended_at: string | null
          error_code: string | null
          error_message: string | null
          first_claimed_at: string | null
          gpu_seconds: number | null
          history: string | null
          images: number | null
          job_id: string
          job_type: string
          priority: number
          run_seconds: number | null
          status: string
          target_worker: string
          trace_id: string | null
          user_id: string
          wait_seconds: number | null
          warnings: string[] | null
          worker: string | null
        }
        ComputedFields: never
        Relationships: []
      }
      queue_health: {
        Row: {
          cancelled_last_hour: number | null
          completed_last_hour: number | null
          delayed: number | null
          failed_last_hour: number | null
          failures_last_day: Json | null
          live_workers: number | null
          oldest_waiting_seconds: number | null
          run_seconds_p50: number | null
          running: number | null
          runpod_attempts: number | null
          runpod_error: string | null
          runpod_next_try_at: string | null
          starting_workers: number | null
          stopping_workers: number | null
          target_worker: string | null
          wait_seconds_p50: number | null
          wait_seconds_p95: number | null
          waiting: number | null
          why_no_more: string | null
        }
        ComputedFields: never
        Relationships: []
      }
    }
    Functions: {
      applied_migrations: { Args: Record<PropertyKey, never>; Returns: string[] }
      claim_jobs: {
        Args: {
          p_job_types: string[]
          p_lease_seconds?: number
          p_limit?: number
          p_target: string
          p_token: string
          p_worker: string
        }
        Returns: Json
      }
      claim_starts: {
        Args: { p_target: string }
        Returns: {
          attempt: number
          id: string
          needed: boolean
        }[]
      }
      claim_stops: {
        Args: { p_target: string }
        Returns: {
          attempt: number
          id: string
          pod_id: string
        }[]
      }
      delete_everything: { Args: Record<PropertyKey, never>; Returns: number }
      delete_jobs: { Args: { p_jobs: string[] }; Returns: number }
      finish_job: {
        Args: {
          p_enhanced_prompt?: string
          p_error?: Json
          p_id: string
          p_images?: Json
          p_metrics?: Json
          p_outcome: string
          p_token: string
          p_warnings?: Json
        }
        Returns: string
      }
      heartbeat_jobs: {
        Args: { p_ids: string[]; p_lease_seconds?: number; p_token: string }
        Returns: {
          id: string
          verdict: string
        }[]
      }
      jobs_ahead: { Args: { p_job: string }; Returns: number }
      reap_jobs: { Args: { p_limit?: number; p_target: string }; Returns: number }
      report_start: { Args: { p_error?: string; p_id: string; p_pod_id?: string; p_provider?: string }; Returns: undefined }
      report_stop: { Args: { p_error?: string; p_id: string }; Returns: undefined }
      report_worker: { Args: { p_facts: Json; p_state: string; p_worker: string }; Returns: undefined }
      retire_jobs: { Args: { p_limit?: number; p_pause_seconds?: number }; Returns: number }
      sweep_orphans: {
        Args: { p_limit?: number; p_pause_seconds?: number }
        Returns: {
          bucket: string
          path: string
        }[]
      }
    }
    Enums: {
      [_ in never]: never
    }
    CompositeTypes: {
      [_ in never]: never
    }
  }
}

type DatabaseWithoutInternals = Omit<Database, '__InternalSupabase'>

type DefaultSchema = DatabaseWithoutInternals[Extract<keyof Database, 'public'>]

export type Tables<
  DefaultSchemaTableNameOrOptions extends
    | keyof (DefaultSchema['Tables'] & DefaultSchema['Views'])
    | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables'] &
        DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Views'])
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? (DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables'] &
      DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Views'])[TableName] extends {
      Row: infer R
    }
    ? R
    : never
  : DefaultSchemaTableNameOrOptions extends keyof (DefaultSchema['Tables'] & DefaultSchema['Views'])
    ? (DefaultSchema['Tables'] & DefaultSchema['Views'])[DefaultSchemaTableNameOrOptions] extends {
        Row: infer R
      }
      ? R
      : never
    : never

export type TablesInsert<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema['Tables'] | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables']
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables'][TableName] extends {
      Insert: infer I
    }
    ? I
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema['Tables']
    ? DefaultSchema['Tables'][DefaultSchemaTableNameOrOptions] extends {
        Insert: infer I
      }
      ? I
      : never
    : never

export type TablesUpdate<
  DefaultSchemaTableNameOrOptions extends keyof DefaultSchema['Tables'] | { schema: keyof DatabaseWithoutInternals },
  TableName extends DefaultSchemaTableNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables']
    : never = never,
> = DefaultSchemaTableNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaTableNameOrOptions['schema']]['Tables'][TableName] extends {
      Update: infer U
    }
    ? U
    : never
  : DefaultSchemaTableNameOrOptions extends keyof DefaultSchema['Tables']
    ? DefaultSchema['Tables'][DefaultSchemaTableNameOrOptions] extends {
        Update: infer U
      }
      ? U
      : never
    : never

export type Enums<
  DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema['Enums'] | { schema: keyof DatabaseWithoutInternals },
  EnumName extends DefaultSchemaEnumNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions['schema']]['Enums']
    : never = never,
> = DefaultSchemaEnumNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[DefaultSchemaEnumNameOrOptions['schema']]['Enums'][EnumName]
  : DefaultSchemaEnumNameOrOptions extends keyof DefaultSchema['Enums']
    ? DefaultSchema['Enums'][DefaultSchemaEnumNameOrOptions]
    : never

export type CompositeTypes<
  PublicCompositeTypeNameOrOptions extends keyof DefaultSchema['CompositeTypes'] | { schema: keyof DatabaseWithoutInternals },
  CompositeTypeName extends PublicCompositeTypeNameOrOptions extends {
    schema: keyof DatabaseWithoutInternals
  }
    ? keyof DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions['schema']]['CompositeTypes']
    : never = never,
> = PublicCompositeTypeNameOrOptions extends { schema: keyof DatabaseWithoutInternals }
  ? DatabaseWithoutInternals[PublicCompositeTypeNameOrOptions['schema']]['CompositeTypes'][CompositeTypeName]
  : PublicCompositeTypeNameOrOptions extends keyof DefaultSchema['CompositeTypes']
    ? DefaultSchema['CompositeTypes'][PublicCompositeTypeNameOrOptions]
    : never

export const Constants = {
  public: {
    Enums: {},
  },
} as const
